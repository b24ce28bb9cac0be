"""Scoring after the training; policies are loaded one after another, as for sampling."""

from pathlib import Path
from typing import Any

import torch
from axolotl.cli.config import load_cfg

from axolotl_tspin.diagnostics.figures import keep_figures
from axolotl_tspin.logs import get_logger
from axolotl_tspin.resolve.loading import load_policy
from axolotl_tspin.resolve.precision import new_adapter
from axolotl_tspin.resolve.steps import prepare_generation
from axolotl_tspin.resolve.yaml_file import read_yaml
from axolotl_tspin.run.directory import Policy
from axolotl_tspin.run.logps import Scores, kept_scores, rows_to_score, write_scores
from axolotl_tspin.run.tables import read_metadata
from axolotl_tspin.run.triplets import triplets_of_rows
from axolotl_tspin.triplets import TripletTokens

LOG = get_logger(__name__)


def score_missing(config_path: Path) -> list[int]:
    """Score the triplets of trained iterations without scores whose policy is kept.

    Returns:
        The iterations that were scored.

    Raises:
        TSpinError: bad configuration.
    """
    raw = read_yaml(config_path)
    adapter = raw.adapter
    plan = prepare_generation(raw)
    run, config = plan.run, plan.config
    cfg = None
    scored = []
    for number in range(config.iterations):
        iteration = run.iteration(number)
        if run.step_of(number).step != "done" or kept_scores(run, number) is not None:
            continue
        if not iteration.model.exists():
            LOG.warning(
                "T-SPIN: iteration %s was not scored, and `t_spin.keep_models: %s` deleted its "
                "policy",
                number,
                config.keep_models,
            )
            continue
        cfg = cfg or load_cfg(raw)
        triplets = iteration.triplets("train")
        count = read_metadata(triplets, verify=False)["rows"]
        rows = rows_to_score(count, config.diagnostics or "all")
        policy = run.policy_after(number, plan.initial_policy, adapter=bool(adapter))
        logps = policy_logps(cfg, policy, adapter, triplets_of_rows(triplets, rows)).numpy()
        scores = Scores(rows, logps, iteration.training_record()["policy"])
        write_scores(iteration.scores, scores, triplets)
        keep_figures(run, number, config)
        scored.append(number)
    return scored


def policy_logps(
    cfg: Any, policy: Policy, adapter: str | None, triplets: list[TripletTokens]
) -> torch.Tensor:
    """(len(triplets), 3) response log-probabilities under a policy, float64.

    Args:
        cfg: a validated configuration of the generation step; its model is replaced.
        adapter: the YAML's `adapter`.
    """
    cfg.base_model = policy.base_model
    cfg.lora_model_dir = policy.adapter_dir
    cfg.adapter = adapter if policy.adapter_dir else new_adapter(adapter)
    return load_policy(cfg).score(triplets)
