"""The trainer: one gradient however a step's triplets are split, and true metrics."""

import pytest
import torch
from support.policies import tiny_llama
from support.training import ALPHA, BETA, make_trainer, make_triplets, numbered

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.training.layouts import pad_triplets
from axolotl_tspin.training.logps import triplet_logps
from axolotl_tspin.training.loss import t_spin_loss


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


def reference_gradient_norms(model, triplets, alpha=ALPHA, beta=BETA):
    """‖∇‖ of both terms' means over triplets, one triplet and one response at a time."""
    norms = []
    for chosen, rejected, weight in ((0, 1, 1.0), (1, 2, beta)):
        total = 0
        for triplet in triplets:
            logps = []
            for response in (triplet[1 + chosen], triplet[1 + rejected]):
                ids = torch.tensor([[*triplet.prompt, *response]])
                logits = model(ids).logits[0].log_softmax(-1)
                start = len(triplet.prompt) - 1
                predicted = logits[start : start + len(response)]
                logps.append(predicted.gather(1, torch.tensor(response)[:, None]).sum())
            advantage = alpha * (logps[0] - logps[1])
            total = total + weight * torch.log1p(torch.exp(-advantage)) / len(triplets)
        gradients = torch.autograd.grad(total, list(model.parameters()))
        norms.append(sum(g.pow(2).sum() for g in gradients).sqrt().item())
    return norms


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
@pytest.mark.parametrize(
    ("triplets", "batch_size", "accumulation"), [(8, 8, 1), (8, 2, 4), (7, 4, 2)]
)
def test_gradient_norms_are_those_of_both_terms(
    tmp_path, triplets, batch_size, accumulation, layout
):
    rows = make_triplets(triplets)
    trainer = make_trainer(
        tmp_path,
        rows,
        batch_size,
        accumulation,
        logging_steps=1,
        t_spin_layout=layout,
        t_spin_gradient_norms=1,
    )
    current, historical = reference_gradient_norms(tiny_llama(50).double().eval(), rows)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["grad_norm/current"] == pytest.approx(current, rel=1e-5)
    assert logged["grad_norm/historical"] == pytest.approx(historical, rel=1e-5)
    expected = parameters_after_one_reference_step(rows)
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-6, atol=1e-7)


def test_measuring_gradients_every_other_step_changes_nothing_in_the_training(tmp_path):
    """With dropout and gradient checkpointing: the same draws and weights as without."""

    def train(every):
        model = tiny_llama(50).double()
        model.config.attention_dropout = 0.2
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.2
        trainer = make_trainer(
            tmp_path / str(every),
            make_triplets(8),
            2,
            1,
            model=model,
            logging_steps=1,
            t_spin_gradient_norms=every,
            gradient_checkpointing=True,
        )
        trainer.train()
        return trainer

    without, measured = train(0), train(2)
    steps = [e["step"] for e in measured.state.log_history if "grad_norm/current" in e]
    assert steps == [1, 3]
    for a, b in zip(without.model.parameters(), measured.model.parameters(), strict=True):
        assert a.equal(b)


def test_a_log_entry_has_the_mean_of_the_gradient_norms_since_the_last(tmp_path):
    def logged(interval):
        trainer = make_trainer(
            tmp_path / str(interval),
            make_triplets(8),
            2,
            1,
            logging_steps=interval,
            t_spin_gradient_norms=1,
        )
        trainer.train()
        entries = [e for e in trainer.state.log_history if "grad_norm/current" in e]
        return [[e["grad_norm/current"], e["grad_norm/historical"]] for e in entries]

    every, [first, second] = torch.tensor(logged(1)), torch.tensor(logged(2))
    assert len(every) == 4
    torch.testing.assert_close(torch.tensor([*first]), every[:2].mean(dim=0))
    torch.testing.assert_close(torch.tensor([*second]), every[2:].mean(dim=0))


def test_gradient_norms_are_refused_where_they_cannot_be_right(tmp_path):
    with pytest.raises(TSpinError, match="fp16 gradients underflow"):
        make_trainer(tmp_path, make_triplets(2), 2, 1, fp16=True, t_spin_gradient_norms=1)


def test_without_a_historical_term_its_gradient_is_zero(tmp_path):
    trainer = make_trainer(
        tmp_path, make_triplets(4), 4, 1, beta=0.0, logging_steps=1, t_spin_gradient_norms=1
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["grad_norm/historical"] == 0.0
    assert logged["grad_norm/current"] == pytest.approx(logged["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
def test_scores_are_the_policy_s_log_probabilities(tmp_path, layout):
    rows = make_triplets(7)
    trainer = make_trainer(tmp_path, rows, 2, 1, t_spin_layout=layout)
    with torch.no_grad():
        expected, _ = triplet_logps(trainer.model, pad_triplets(rows, pad_token_id=0))
    scores = trainer.score(numbered(rows))
    assert list(scores) == list(range(7))
    torch.testing.assert_close(
        torch.tensor(list(scores.values()), dtype=torch.float64), expected, rtol=1e-6, atol=1e-6
    )
    assert trainer.evaluate()["eval_loss"] > 0, "scoring leaves nothing behind in the metrics"


def test_saturation_counts_triplets_whose_gradient_is_all_but_gone(tmp_path):
    rows = make_triplets(7)
    trainer = make_trainer(tmp_path, rows, 7, 1, logging_steps=1)
    with torch.no_grad():
        logps, _ = triplet_logps(trainer.model, pad_triplets(rows, pad_token_id=0))
    y, s, p = (ALPHA * logps).unbind(1)
    current, historical = 1 / (1 + torch.exp(y - s)), 1 / (1 + torch.exp(s - p))
    trainer.train()
    logged = trainer.state.log_history[0]
    expected = {"current": current, "historical": historical, "both": current + BETA * historical}
    for name, weight in expected.items():
        share = (weight < 0.01).double().mean().item()
        assert logged[f"saturation/{name}"] == pytest.approx(share)
    assert 0 < logged["saturation/current"] < 1
