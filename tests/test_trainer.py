"""The trainer: one gradient however a step's triplets are split, and true metrics."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_llama
from transformers import TrainingArguments

from axolotl_tspin.args import TSpinTrainingArgs
from axolotl_tspin.collator import TripletCollator
from axolotl_tspin.layouts import TripletTokens, pad_triplets
from axolotl_tspin.logps import triplet_logps
from axolotl_tspin.loss import t_spin_loss
from axolotl_tspin.trainer import TripletTrainer

ALPHA, BETA = 0.3, 0.4


@dataclass
class Arguments(TSpinTrainingArgs, TrainingArguments):
    pass


def make_triplets(n: int) -> list[TripletTokens]:
    generator = torch.Generator().manual_seed(3)

    def ids(low, high):
        length = torch.randint(low, high, (), generator=generator)
        return torch.randint(3, 50, (int(length),), generator=generator).tolist()

    return [TripletTokens(ids(2, 6), ids(1, 9), ids(1, 9), ids(1, 9)) for _ in range(n)]


class Collator(TripletCollator):
    """Takes triplets, or pairs of a triplet and its reference log-probabilities, instead of a data
    set's rows."""

    def __init__(self) -> None:
        super().__init__(SimpleNamespace(pad_token_id=0))

    def __call__(self, triplets):
        rows = []
        for item in triplets:
            t, reference = (item, None) if isinstance(item, TripletTokens) else item
            row = {
                "input_ids": [*t.prompt, *t.annotated],
                "labels": [-100] * len(t.prompt) + t.annotated,
                "synthetic_ids": t.synthetic,
                "proto_synthetic_ids": t.proto_synthetic,
            }
            rows.append(row if reference is None else row | {"reference_logps": reference})
        return super().__call__(rows)


def make_trainer(path, triplets, batch_size, accumulation, model=None, **kwargs) -> TripletTrainer:
    args = Arguments(
        output_dir=str(path),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        per_device_eval_batch_size=3,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        num_train_epochs=1,
        report_to=[],
        remove_unused_columns=False,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        t_spin_alpha=ALPHA,
        t_spin_beta=BETA,
        **kwargs,
    )
    return TripletTrainer(
        model=tiny_llama(50).double() if model is None else model,
        args=args,
        train_dataset=triplets,
        eval_dataset=triplets,
        data_collator=Collator(),
    )


def parameters_after_one_reference_step(triplets):
    """θ − ∇ of the mean over triplets, one triplet at a time."""
    model = tiny_llama(50).double()
    for triplet in triplets:
        logps, _ = triplet_logps(model, pad_triplets([triplet], pad_token_id=0))
        losses = t_spin_loss(*logps.unbind(1), alpha=ALPHA, beta=BETA)
        (losses.loss.sum() / len(triplets)).backward()
    return {name: (p - p.grad).detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
@pytest.mark.parametrize(
    ("triplets", "batch_size", "accumulation"),
    [(8, 8, 1), (8, 4, 2), (8, 2, 4), (7, 4, 2), (7, 2, 4), (5, 8, 4)],
)
def test_one_step_is_the_mean_over_its_triplets(
    tmp_path, triplets, batch_size, accumulation, layout
):
    rows = make_triplets(triplets)
    trainer = make_trainer(
        tmp_path, rows, batch_size, accumulation, logging_steps=1, t_spin_layout=layout
    )
    trainer.train()
    assert trainer.data_collator.layout == layout
    assert trainer.state.global_step == 1
    expected = parameters_after_one_reference_step(rows)
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-6, atol=1e-7)


def expected_metrics(model, rows):
    with torch.no_grad():
        logps, counts = triplet_logps(model, pad_triplets(rows, pad_token_id=0))
    y, s, p = logps.unbind(1)
    losses = t_spin_loss(y, s, p, alpha=ALPHA, beta=BETA)
    per_token = (logps / counts).mean(0)
    return {
        "loss/current": losses.current.mean(),
        "loss/historical": losses.historical.mean(),
        "rewards/annotated": ALPHA * y.mean(),
        "rewards/synthetic": ALPHA * s.mean(),
        "rewards/proto_synthetic": ALPHA * p.mean(),
        "rewards/margins": ALPHA * (y - s).mean(),
        "rewards/accuracies": (y > s).double().mean(),
        "rewards/historical_margins": ALPHA * (s - p).mean(),
        "rewards/historical_accuracies": (s > p).double().mean(),
        "logps/annotated": y.mean(),
        "logps/synthetic": s.mean(),
        "logps/proto_synthetic": p.mean(),
        "logps/annotated_per_token": per_token[0],
        "logps/synthetic_per_token": per_token[1],
        "logps/proto_synthetic_per_token": per_token[2],
        "advantages/current": (y - s).mean(),
        "advantages/historical": (s - p).mean(),
        "logps/margins": (y - s).mean(),
        "logps/accuracies": (y > s).double().mean(),
    }, losses.loss.mean().item()


def test_training_metrics_are_means_over_the_interval_and_the_loss_is_their_sum(tmp_path):
    rows = make_triplets(7)
    trainer = make_trainer(tmp_path, rows, 2, 4, logging_steps=1)
    expected, loss = expected_metrics(trainer.model, rows)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["loss"] == pytest.approx(loss, rel=1e-5)
    for name, value in expected.items():
        assert logged[name] == pytest.approx(value.item(), rel=1e-5), name
    assert logged["loss"] == pytest.approx(
        logged["loss/current"] + BETA * logged["loss/historical"], rel=1e-5
    )
    assert "ppl" not in logged


def test_a_logging_interval_of_several_steps_is_averaged_over_all_its_triplets(tmp_path):
    rows = make_triplets(8)
    fine = make_trainer(tmp_path, rows, 2, 1, logging_steps=1)
    fine.train()
    coarse = make_trainer(tmp_path, rows, 2, 1, logging_steps=4)
    coarse.train()
    steps = [entry["logps/annotated"] for entry in fine.state.log_history if "loss" in entry]
    assert len(steps) == 4
    assert coarse.state.log_history[0]["logps/annotated"] == pytest.approx(sum(steps) / 4, rel=1e-5)


def test_evaluation_reports_exact_means_with_a_partial_last_batch(tmp_path):
    rows = make_triplets(7)  # batches of 3, 3 and 1
    trainer = make_trainer(tmp_path, rows, 2, 1)
    expected, loss = expected_metrics(trainer.model, rows)
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(loss, rel=1e-5)
    for name, value in expected.items():
        assert metrics[f"eval_{name}"] == pytest.approx(value.item(), rel=1e-5), name
    assert trainer.state.log_history[-1]["eval_rewards/margins"] == metrics["eval_rewards/margins"]
