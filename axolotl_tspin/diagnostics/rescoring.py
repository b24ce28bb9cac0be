"""Scores that a training did not leave: policies are loaded, one after another, as for sampling."""

from pathlib import Path
from typing import Any

import torch
from axolotl.cli.config import load_cfg
from axolotl.utils.logging import get_logger

from axolotl_tspin.collator import triplet_tokens
from axolotl_tspin.diagnostics.figures import keep_figures, kept_scores
from axolotl_tspin.diagnostics.scores import Scores, rows_to_score, triplets_to_score, write_scores
from axolotl_tspin.layouts import TripletTokens
from axolotl_tspin.loading import load_policy
from axolotl_tspin.resolve import prepare_generation, read_yaml
from axolotl_tspin.run_directory import Policy
from axolotl_tspin.tables import read_metadata

LOG = get_logger(__name__)


def score_missing(config_path: Path) -> list[int]:
    """Score the triplets of trained iterations that lack it and whose policy is kept.

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
                "T-SPIN: iteration %s was not scored, and `t_spin.keep_models: %s` let its policy "
                "go",
                number,
                config.keep_models,
            )
            continue
        cfg = cfg or load_cfg(raw)
        triplets = iteration.triplets("train")
        metadata = read_metadata(triplets)
        rows = rows_to_score(metadata["rows"], config.diagnostics or "all")
        data = [triplet_tokens(row) for row in triplets_to_score(triplets, rows)]
        policy = run.policy_after(number, plan.initial_policy, adapter=bool(adapter))
        logps = policy_logps(cfg, policy, adapter, data).numpy()
        scores = Scores(rows, logps, iteration.training_record()["policy"])
        write_scores(iteration.scores, scores, prompts_fingerprint=metadata["prompts_fingerprint"])
        keep_figures(run, number, config)
        scored.append(number)
    return scored


def policy_logps(
    cfg: Any, policy: Policy, adapter: str | None, triplets: list[TripletTokens]
) -> torch.Tensor:
    """(len(triplets), 3) response log-probabilities under a policy, float64.

    Args:
        cfg: a validated configuration of the generation step; its model is exchanged.
        adapter: the YAML's `adapter`.
    """
    cfg.base_model = policy.base_model
    cfg.lora_model_dir = policy.adapter_dir
    cfg.adapter = adapter if policy.adapter_dir else None
    return load_policy(cfg).score(triplets, cfg.micro_batch_size)
