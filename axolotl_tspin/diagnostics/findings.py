"""Warnings about a run, each with the observation, its usual cause, and the key to change.

Every check reads only figures and returns a `Finding` or None.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.diagnostics.figures import (
    IterationFigures,
    Sampling,
    run_figures,
    sampling_figures,
)
from axolotl_tspin.run.directory import Iteration, RunDirectory
from axolotl_tspin.verdicts.evidence import Evidence, read_evidence
from axolotl_tspin.verdicts.verdict import verdict_of

HIGH_BETA = 0.1
"""The paper's β. Above it, the historical term is known to dominate."""

SMALLER_STEPS = "Usual cause: steps that are too large: lower `learning_rate` or `num_epochs`"

LOW_ALPHA = 0.1
"""The paper's α where log-probabilities are sums over long responses."""

MOSTLY_SATURATED = 0.9
MANY_CUT = 0.1
EXPLOSION = 2.0


class Finding(NamedTuple):
    """A warning: the iteration it is about, a short name, and the text; `stops` if the next step
    would be of no use (`t_spin.on_warning`). `remedy` holds keys of the YAML with the values to
    try, where the remedy is a key."""

    iteration: int
    sign: str
    text: str
    stops: bool = False
    remedy: dict[str, Any] | None = None

    def __str__(self) -> str:
        return f"iteration {self.iteration}: {self.text}"


def cut_at_the_limit(sampling: Sampling, max_new_tokens: int) -> Finding | None:
    """Warn if many responses were cut at the token limit."""
    if sampling.cut_share <= MANY_CUT:
        return None
    return Finding(
        sampling.iteration,
        "responses cut",
        f"{sampling.cut} of {sampling.sampled} sampled responses ({sampling.cut_share:.0%}) were "
        f"cut at the limit of {max_new_tokens} tokens: the loss compares complete annotations with "
        "fragments. Usual cause: the limit is below what the model writes. Raise "
        "`t_spin.generation.max_new_tokens` (and `sequence_len`). If responses reach a higher "
        "limit as well, the model does not end its turns: check `chat_template` and `eot_tokens`",
        remedy={"t_spin": {"generation": {"max_new_tokens": 2 * max_new_tokens}}},
    )


def length_explosion(
    sampling: Sampling, first: Sampling, learning_rate: float | None = None
) -> Finding | None:
    """Warn if sampled responses are much longer than at iteration 0.

    Args:
        learning_rate: of the training before, if it is known.
    """
    if not first.sampled or not sampling.sampled:
        return None
    ratio = sampling.mean_tokens / max(first.mean_tokens, 1)
    if sampling.iteration == 0 or ratio < EXPLOSION:
        return None
    return Finding(
        sampling.iteration,
        "length explosion",
        f"sampled responses have {sampling.mean_tokens:.0f} tokens on average, "
        f"{ratio:.1f} times the {first.mean_tokens:.0f} of iteration 0. Usual cause: training on "
        "short y′ made the end-of-turn token less likely, or moved the policy too far in one "
        "iteration. Lower `learning_rate` or `num_epochs`, or `t_spin.alpha`",
        remedy=smaller_steps(learning_rate),
    )


def foreign_anchor(figures: IterationFigures) -> Finding | None:
    """Warn of proto-synthetic responses that θ0 did not sample."""
    count = figures.triplets.foreign_anchors
    if not count:
        return None
    return Finding(
        figures.iteration,
        "foreign anchor",
        f"{count} proto-synthetic responses (y0) were not sampled by the policy that this run "
        "began with. The historical term then measures progress from another policy, and the "
        "wanted order y ⪰ y′ ⪰ y0 need not hold. Usual cause: imported responses or replaced "
        "weights, accepted by `t_spin.allow_foreign: true`. Begin a run in another `output_dir` "
        "without it, so that y0 is sampled from `base_model`",
        remedy={"t_spin": {"allow_foreign": False}},
    )


def annotated_below_synthetic(
    figures: IterationFigures,
    config: TSpinConfig,
    evidence: Evidence | None,
    learning_rate: float | None = None,
) -> Finding | None:
    """Warn if the trained policy finds synthetic responses likelier than annotated ones.

    Args:
        evidence: what the iteration changed, where it was measured.
        learning_rate: of its training, if it is known.
    """
    policy = figures.policy
    if policy is None or policy.gap[0] >= 0:
        return None
    y, s = policy.logps["annotated"], policy.logps["synthetic"]
    [[_, opposite], _] = policy.table
    tokens = figures.triplets.tokens
    per_token = policy.logps_per_token
    remedy = None
    if config.has_reference:
        remedy = {"t_spin": {"method": "t_spin"}}
        cause = (
            f"`t_spin.method: {config.method}` rewards a response relative to a "
            "reference policy, which allows this (figure 3 of the paper). `t_spin.method: t_spin` "
            "does not"
        )
    elif evidence is not None and verdict_of(evidence).word in ("worse", "collapsed"):
        remedy = smaller_steps(learning_rate)
        cause = f"The training did harm. {SMALLER_STEPS}"
    elif per_token["annotated"] > per_token["synthetic"]:
        cause = (
            "Per token y is the likelier one, so that the sums differ by length. Usual cause: y is "
            "much longer than y′. Compare `tokens` of both, and the figures per token"
        )
    else:
        cause = (
            "Usual causes: prompt or response masked or templated wrongly (compare `prompt` and "
            "`annotated` in iteration_0/triplets/train.parquet with your data), or too little "
            "training: raise `learning_rate` or `num_epochs`"
        )
    return Finding(
        figures.iteration,
        "annotated below synthetic",
        f"after training, log π(y|x) = {y:.1f} is below log π(y′|x) = {s:.1f} (means over "
        f"{policy.rows} triplets; a gap of {policy.gap[0]:.1f} nats; {opposite} triplets have the "
        f"higher reward and yet the lower likelihood; y has {tokens['annotated']:.0f} tokens, y′ "
        f"{tokens['synthetic']:.0f}; per token {per_token['annotated']:.2f} and "
        f"{per_token['synthetic']:.2f}). {cause}",
        remedy=remedy,
    )


def harm(
    number: int, evidence: Evidence | None, beta: float, learning_rate: float | None = None
) -> Finding | None:
    """Warn if an iteration made the policy worse, or wrecked it.

    Args:
        evidence: what the iteration changed.
        beta: the β in force in this iteration.
        learning_rate: of its training, if it is known.
    """
    if evidence is None:
        return None
    word, sentence = verdict_of(evidence)
    if word not in ("worse", "collapsed"):
        return None
    cause, remedy = SMALLER_STEPS, smaller_steps(learning_rate)
    if beta > HIGH_BETA:
        cause = (
            f"Usual cause: the historical term is over-weighted (β = {beta:g}). Set `t_spin.beta` "
            f"to {HIGH_BETA} or less"
        )
        remedy = {"t_spin": {"beta": HIGH_BETA}}
    return Finding(
        number,
        "collapse" if word == "collapsed" else "worse",
        f"{word}: {sentence}. {cause}. To train this iteration again, move "
        f"iteration_{number}/model and iteration_{number}/trained.json away",
        stops=word == "collapsed",
        remedy=remedy,
    )


def smaller_steps(learning_rate: float | None) -> dict[str, Any] | None:
    """The keys for half the learning rate; None if it is not known."""
    return None if learning_rate is None else {"learning_rate": learning_rate / 2}


def saturated(iteration: int, logs: Mapping[str, Any], alpha: float) -> Finding | None:
    """Warn if almost no triplet has a gradient left.

    Args:
        logs: an entry of the training log.
    """
    share = logs.get("saturation/both")
    if share is None or share < MOSTLY_SATURATED:
        return None
    lower = LOW_ALPHA if alpha > LOW_ALPHA else alpha / 2
    return Finding(
        iteration,
        "saturated",
        f"at step {logs.get('step', 0)} the gradient of {share:.0%} of the triplets was all but "
        f"zero: α·u = {logs.get('rewards/margins', math.inf):.1f} and α·v = "
        f"{logs.get('rewards/historical_margins', math.inf):.1f} saturate ℓ′ (weights below 0.01). "
        "Usual cause: "
        "log-probabilities are sums over long responses that are easy to distinguish. Lower "
        f"`t_spin.alpha` (now {alpha:g}) to {lower:g}, or stop here: these triplets teach nothing "
        "more",
        remedy={"t_spin": {"alpha": lower}},
    )


def sampling_findings(
    sampling: Sampling, first: Sampling, config: TSpinConfig, learning_rate: float | None = None
) -> list[Finding]:
    """List the warnings about a generation step.

    Args:
        first: iteration 0's.
        learning_rate: of the training before, if it is known.
    """
    found = [
        cut_at_the_limit(sampling, config.generation.max_new_tokens),
        length_explosion(sampling, first, learning_rate),
    ]
    return [finding for finding in found if finding]


def findings_of_sampling(run: RunDirectory, number: int, config: TSpinConfig) -> list[Finding]:
    """List the warnings about an iteration's training triplets, trained or not."""
    first, sampling = (sampling_figures(run, t) for t in (0, number))
    rate = learning_rate_of(run.iteration(number - 1)) if number else None
    return sampling_findings(sampling, first, config, rate)


def learning_rate_of(iteration: Iteration) -> float | None:
    """Read the learning rate that an iteration was trained with; None if its YAML is not there."""
    try:
        return float(yaml.safe_load(iteration.training_config.read_text())["learning_rate"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return None


def run_findings(
    figures: Sequence[IterationFigures],
    logs: Sequence[Sequence[Mapping[str, Any]]],
    betas: Sequence[float],
    evidences: Sequence[Evidence | None],
    rates: Sequence[float | None],
    config: TSpinConfig,
) -> list[Finding]:
    """List the warnings about all trained iterations.

    Args:
        figures, logs, betas, evidences, rates: for iterations 0, 1, …: figures, training log, the
            β in force, what the iteration changed, and the learning rate if it is known.
    """
    found: list[Finding | None] = []
    before = None
    for one, log, beta, evidence, rate in zip(figures, logs, betas, evidences, rates, strict=True):
        found += sampling_findings(one.sampling, figures[0].sampling, config, before)
        before = rate
        found += [
            foreign_anchor(one),
            annotated_below_synthetic(one, config, evidence, rate),
            harm(one.iteration, evidence, beta, rate),
            next(filter(None, (saturated(one.iteration, e, config.alpha) for e in log)), None),
        ]
    return [finding for finding in found if finding]


def findings_of_run(run: RunDirectory, config: TSpinConfig) -> list[Finding]:
    """Read the run directory and list the warnings about all trained iterations."""
    figures = run_figures(run, config)
    records = [run.iteration(f.iteration).training_record() for f in figures]
    return run_findings(
        figures,
        [record["log_history"] for record in records],
        [record.get("beta", config.beta) for record in records],
        [read_evidence(run, f.iteration, config) for f in figures],
        [learning_rate_of(run.iteration(f.iteration)) for f in figures],
        config,
    )
