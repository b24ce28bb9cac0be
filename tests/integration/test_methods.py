"""The baselines and ablations: their losses, their reference log-probabilities, their runs."""

import math

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from support.data import conversations, write_jsonl
from support.policies import tiny_llama
from support.runs import pretend_trained
from support.training import make_trainer, make_triplets
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.generation.step import generate
from axolotl_tspin.resolve.steps import prepare_training
from axolotl_tspin.resolve.yaml_file import read_yaml
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.tables import read_table
from axolotl_tspin.training.layouts import pad_triplets
from axolotl_tspin.training.logps import triplet_logps
from axolotl_tspin.training.loss import t_spin_loss
from axolotl_tspin.training.scoring import score_triplets

METHODS = ("t_spin", "spin", "t_spin_ref", "no_history")

logp = st.floats(-60, 0)

triple = st.tuples(logp, logp, logp)


pytestmark = pytest.mark.usefixtures("small_blocks")


def ell(a: float, loss: str) -> tuple[float, float]:
    """ℓ and its slope."""
    if loss == "exponential":
        return math.exp(-a), -math.exp(-a)
    slope = -1 / (1 + math.exp(a)) if a < 700 else -math.exp(-a)
    return (math.log1p(math.exp(-a)) if a > 0 else -a + math.log1p(math.exp(a))), slope


def spin(policy, reference, lam, beta, loss):
    """Eq. 3: r = λ·[log π_θ − log π_θt], L = ℓ(r(y) − r(y′))."""
    rewards = [lam * (p - q) for p, q in zip(policy, reference, strict=True)]
    value, slope = ell(rewards[0] - rewards[1], loss)
    return value, [slope * lam, -slope * lam, 0.0]


def t_spin_ref(policy, reference, alpha, beta, loss):
    """Eq. 9: the triplet loss with SPIN's rewards."""
    rewards = [alpha * (p - q) for p, q in zip(policy, reference, strict=True)]
    (current, du), (historical, dv) = (
        ell(rewards[0] - rewards[1], loss),
        ell(rewards[1] - rewards[2], loss),
    )
    gradient = [alpha * du, alpha * (beta * dv - du), -alpha * beta * dv]
    return current + beta * historical, gradient


def no_history(policy, reference, alpha, beta, loss):
    """Eq. 7 without its second term."""
    value, slope = ell(alpha * (policy[0] - policy[1]), loss)
    return value, [alpha * slope, -alpha * slope, 0.0]


def t_spin(policy, reference, alpha, beta, loss):
    """Eq. 7."""
    return t_spin_ref(policy, (0.0, 0.0, 0.0), alpha, beta, loss)


REFERENCES = {f.__name__: f for f in (t_spin, spin, t_spin_ref, no_history)}


@pytest.mark.parametrize("loss", ["logistic", "exponential"])
@pytest.mark.parametrize("method", METHODS)
@given(
    policies=st.lists(triple, min_size=1, max_size=4),
    frozen=triple,
    alpha=st.floats(0.05, 1.5),
    beta=st.floats(0.05, 1.0),
)
def test_loss_and_gradient_are_those_of_the_papers(method, loss, policies, frozen, alpha, beta):
    """As the trainer is set up for each method."""
    config = TSpinConfig(method=method, alpha=alpha, beta=beta, loss=loss)
    logps = torch.tensor(policies, dtype=torch.float64, requires_grad=True)
    references = torch.tensor([frozen] * len(policies), dtype=torch.float64)
    result = t_spin_loss(
        *logps.unbind(1),
        alpha=alpha,
        beta=beta if config.has_history else 0.0,
        loss=loss,
        reference_logps=references if config.has_reference else None,
    )
    result.loss.sum().backward()
    for i, policy in enumerate(policies):
        value, gradient = REFERENCES[method](policy, frozen, alpha, beta, loss)
        assert result.loss[i].item() == pytest.approx(value, rel=1e-9, abs=1e-30)
        assert logps.grad[i].tolist() == pytest.approx(gradient, rel=1e-9, abs=1e-14)


def with_references(triplets, policy):
    logps = score_triplets(policy, triplets, pad_token_id=0, batch_size=4)
    return [(t, row) for t, row in zip(triplets, logps.tolist(), strict=True)]


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
def test_spin_is_trls_dpo_with_beta_lambda(tmp_path, tokenizer, layout):
    """The real DPOTrainer on the same tokens, its reference log-probabilities stored as ours."""
    lam = 0.1
    frozen = tiny_llama(600, seed=9)
    triplets = [row for row in make_triplets(6) if row.annotated != row.synthetic]
    rows = with_references(triplets, frozen)

    dpo = DPOTrainer(
        model=(theirs := tiny_llama(600)),
        args=DPOConfig(
            output_dir=str(tmp_path / "dpo"),
            beta=lam,
            loss_type=["sigmoid"],
            precompute_ref_log_probs=True,
            max_length=None,
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            report_to=[],
        ),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}]),
        processing_class=tokenizer,
    )
    batch = dpo.data_collator(
        [
            {
                "prompt_ids": list(t.prompt),
                "chosen_ids": t.annotated,
                "rejected_ids": t.synthetic,
                "ref_chosen_logps": reference[0],
                "ref_rejected_logps": reference[1],
            }
            for t, reference in rows
        ]
    )
    dpo.current_gradient_accumulation_steps = 1  # set by the loop that is not run here
    their_loss = dpo.compute_loss(theirs, batch)
    their_loss.backward()

    ours = tiny_llama(600)
    trainer = make_trainer(tmp_path, rows, 6, 1, model=ours, t_spin_layout=layout)
    trainer.args.t_spin_alpha, trainer.args.t_spin_beta = lam, 0.0
    our_loss, outputs = trainer.compute_loss(ours, trainer.data_collator(rows), return_outputs=True)
    our_loss.backward()
    assert trainer.layout.choice.layout == layout
    assert our_loss.item() == pytest.approx(their_loss.item(), rel=1e-5)
    assert our_loss.item() != pytest.approx(math.log(2), abs=1e-3), "the policies differ"
    theirs = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-5)
    logged = dpo._metrics["train"]
    metrics = outputs["metrics"]
    assert metrics["rewards/margins"].mean().item() == pytest.approx(
        logged["rewards/margins"][-1], rel=1e-3
    )
    assert metrics["rewards/annotated"].mean().item() == pytest.approx(
        logged["rewards/chosen"][-1], rel=1e-3
    )


def test_the_order_of_rewards_and_of_likelihoods_are_told_apart(tmp_path):
    triplets = make_triplets(8)
    policy = tiny_llama(50)
    rows = with_references(triplets, tiny_llama(50, seed=9))
    trainer = make_trainer(tmp_path, rows, 8, 1, model=policy)
    _, outputs = trainer.compute_loss(policy, trainer.data_collator(rows), return_outputs=True)
    with torch.no_grad():
        logps, _ = triplet_logps(policy, pad_triplets(triplets, pad_token_id=0))
    relative = logps - torch.tensor([reference for _, reference in rows])
    expected = {
        "rewards/margins": 0.3 * (relative[:, 0] - relative[:, 1]),
        "rewards/synthetic": 0.3 * relative[:, 1],
        "advantages/historical": relative[:, 1] - relative[:, 2],
        "logps/margins": logps[:, 0] - logps[:, 1],
        "logps/synthetic": logps[:, 1],
        "logps/accuracies": (logps[:, 0] > logps[:, 1]).float(),
        "rewards/accuracies": (relative[:, 0] > relative[:, 1]).float(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(outputs["metrics"][name], value, rtol=1e-4, atol=1e-4)
    assert not expected["logps/accuracies"].equal(expected["rewards/accuracies"])


def logged(run: RunDirectory, number: int) -> list[dict]:
    history = run.iteration(number).training_record()["log_history"]
    return [entry for entry in history if "loss" in entry]


def sampled(make_yaml, method="spin", **keys):
    settings = {"method": method, "generation": {"max_new_tokens": 12, "batch_size": 4}}
    return make_yaml(rows=10, t_spin=settings | keys)


def test_references_are_the_frozen_policys_log_probabilities(make_yaml, tmp_path, policy_dir):
    path = sampled(make_yaml)
    generate(path)
    run = RunDirectory(tmp_path / "out", reference_window=0)
    ((triplets, reference),) = run.references(0)
    table, metadata = read_table(reference)
    assert metadata["policy"] == run.initial_policy()
    policy = AutoModelForCausalLM.from_pretrained(policy_dir, dtype=torch.float64)
    for row, logps in zip(read_table(triplets)[0].to_pylist(), table.to_pylist(), strict=True):
        assert logps["row"] == row["row"]
        for name in ("annotated", "synthetic", "proto_synthetic"):
            ids = torch.tensor([row["prompt_ids"] + row[f"{name}_ids"]])
            with torch.no_grad():
                all_logps = policy(ids).logits[0].log_softmax(-1)
            begin = len(row["prompt_ids"])
            tokens = zip(range(begin, ids.shape[1]), row[f"{name}_ids"], strict=True)
            expected = sum(all_logps[position - 1, token].item() for position, token in tokens)
            assert logps[f"{name}_logps"] == pytest.approx(expected, abs=1e-3)


def test_a_window_larger_than_the_run_and_the_test_split(make_yaml, tmp_path):
    run = RunDirectory(tmp_path / "out")
    path = make_yaml(rows=4, t_spin={"history_window": 5, "iterations": 3})
    generate(path)
    pretend_trained(run, 0)
    generate(path)
    prepare_training(raw := read_yaml(path))
    assert [entry["path"] for entry in raw.datasets] == [
        str(run.iteration(t).triplets("train")) for t in (0, 1)
    ]
    assert run.window(2, "test", 5) == [2]


def test_a_method_with_a_reference_needs_a_run(make_yaml, tmp_path):
    rows = [row | {"synthetic": "1", "proto_synthetic": "2"} for row in conversations(4)]
    data = write_jsonl(tmp_path / "direct.jsonl", rows)
    path = make_yaml(
        datasets=[{"path": str(data), "type": "t_spin.chat_template"}], t_spin={"method": "spin"}
    )
    with pytest.raises(TSpinError, match=r"`t_spin\.method: spin` needs log-probabilities"):
        prepare_training(read_yaml(path))
