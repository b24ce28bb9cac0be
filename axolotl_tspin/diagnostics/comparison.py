"""Comparison of each iteration's triplets under the policies before and after its training."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from axolotl.cli.config import load_cfg

from axolotl_tspin.diagnostics.rescoring import policy_logps
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.resolve.steps import prepare_generation
from axolotl_tspin.resolve.yaml_file import read_yaml
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.logps import kept_scores, logps_of_rows, reference_logps
from axolotl_tspin.run.tables import read_metadata
from axolotl_tspin.run.triplets import triplets_of_rows


class Comparison(NamedTuple):
    """Means over an iteration's triplets under one policy, in nats.

    `logps` belong to annotated, synthetic and proto-synthetic responses; u and v are the current
    and the historical advantage.
    """

    iteration: int
    policy: str
    rows: int
    logps: tuple[float, float, float]
    u: float
    v: float


def compare(config_path: Path, rows: int | None = None) -> list[Comparison]:
    """Compare every trained iteration's triplets (the first `rows`), before and after training.

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
            f"`t_spin.keep_models: {plan.config.keep_models}` deleted the policies that could be "
            "compared; two that follow each other are needed"
        )
    cfg = load_cfg(raw)
    comparisons = []
    for t in kept:
        path = plan.run.iteration(t).triplets("train")
        whole = read_metadata(path, verify=False)["rows"]
        triplets = triplets_of_rows(path, np.arange(min(rows or whole, whole)))
        for name, number in (("before", t - 1), ("after", t)):
            policy = plan.run.policy_after(number, plan.initial_policy, adapter=bool(adapter))
            logps = _kept_logps(plan.run, t, name, len(triplets))
            if logps is None:
                logps = policy_logps(cfg, policy, adapter, triplets).numpy()
            y, s, p = logps.mean(axis=0).tolist()
            comparisons.append(Comparison(t, name, len(triplets), (y, s, p), y - s, s - p))
    return comparisons


def _kept_logps(run: RunDirectory, number: int, policy: str, rows: int) -> np.ndarray | None:
    """(rows, 3) log-probabilities of an iteration's first triplets, if the run directory has them:
    scored after the training, or before it as a reference."""
    if policy == "after":
        return logps_of_rows(kept_scores(run, number), np.arange(rows))
    reference = reference_logps(run, number)
    return None if reference is None else reference[:rows]
