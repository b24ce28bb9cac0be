"""What each iteration did: its triplets under the policy before and after the training."""

from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from axolotl.cli.config import load_cfg
from axolotl.cli.utils.load import load_model_and_tokenizer

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.generation.store import iterate_triplets
from axolotl_tspin.layouts import RESPONSES, TripletTokens
from axolotl_tspin.resolve import prepare_generation, read_yaml
from axolotl_tspin.run_directory import Policy
from axolotl_tspin.scoring import score_triplets

TOKEN_COLUMNS = ["prompt_ids", *(f"{name}_ids" for name in RESPONSES)]


class Comparison(NamedTuple):
    """Means over an iteration's triplets under one policy, in nats.

    `logps` are of annotated, synthetic and proto-synthetic responses; u and v are the current and
    the historical advantage.
    """

    iteration: int
    policy: str
    rows: int
    logps: tuple[float, float, float]
    u: float
    v: float


class Sample(NamedTuple):
    """One prompt through the run: the annotated response, the anchor, the last sampled one."""

    prompt: str
    annotated: str
    proto_synthetic: str
    synthetic: str


def compare(config_path: Path, rows: int | None = None) -> list[Comparison]:
    """Every trained iteration's triplets (the first `rows` of them), before and after.

    Raises:
        TSpinError: no iteration is trained yet.
    """
    raw = read_yaml(config_path)
    adapter = raw.adapter
    plan = prepare_generation(raw)
    trained = [t for t in range(plan.config.iterations) if plan.run.step_of(t).step == "done"]
    if not trained:
        raise TSpinError(f"no iteration of the run in {plan.run.path} is trained yet")
    kept = [
        t
        for t in trained
        if all(plan.run.iteration(s).model.exists() for s in (t - 1, t) if s >= 0)
    ]
    if not kept:
        raise TSpinError(
            f"`t_spin.keep_models: {plan.config.keep_models}` let the policies go that could be "
            "compared; two that follow each other are needed"
        )
    cfg = load_cfg(raw)
    comparisons = []
    for t in kept:
        triplets = [
            TripletTokens(*row.values())
            for row in islice(
                iterate_triplets(plan.run.iteration(t).triplets("train"), TOKEN_COLUMNS), rows
            )
        ]
        for name, number in (("before", t - 1), ("after", t)):
            policy = plan.run.policy_after(number, plan.initial_policy, adapter=bool(adapter))
            logps = _logps(cfg, policy, adapter, triplets)
            y, s, p = logps.mean(dim=0).tolist()
            comparisons.append(Comparison(t, name, len(triplets), (y, s, p), y - s, s - p))
    return comparisons


def sample_of(triplets: Path, row: int = 0) -> Sample:
    """A row of an iteration's triplets, for a person to read."""
    rows = iterate_triplets(triplets, list(Sample._fields))
    return Sample(**next(islice(rows, row, None)))


def _logps(
    cfg: Any, policy: Policy, adapter: str | None, triplets: list[TripletTokens]
) -> torch.Tensor:
    """(len(triplets), 3) response log-probabilities under a policy, float64."""
    cfg.base_model = policy.base_model
    cfg.lora_model_dir = policy.adapter_dir
    cfg.adapter = adapter if policy.adapter_dir else None
    model, tokenizer, _ = load_model_and_tokenizer(cfg=cfg, inference=True)
    return score_triplets(
        model, triplets, pad_token_id=tokenizer.pad_token_id, batch_size=cfg.micro_batch_size
    )
