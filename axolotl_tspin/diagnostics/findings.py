"""Warnings about a run, each with the observation, its usual cause, and the key to change.

Every check reads only figures and returns a `Finding` or None.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.diagnostics.figures import (
    IterationFigures,
    PolicyFigures,
    Sampling,
    run_figures,
    sampling_figures,
)
from axolotl_tspin.run.directory import RunDirectory

HIGH_BETA = 0.1
"""The paper's β. Above it, the historical term is known to dominate."""

COLLAPSE, COLLAPSE_NATS = 0.25, 0.1
"""Collapse: log π(y|x) per token falls by this share of itself, and by this many nats."""

MOSTLY_SATURATED = 0.9
MANY_CUT = 0.1
EXPLOSION = 2.0


class Finding(NamedTuple):
    """A warning: the iteration it is about, a short name, and the text."""

    iteration: int
    sign: str
    text: str

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
    )


def length_explosion(sampling: Sampling, first: Sampling) -> Finding | None:
    """Warn if sampled responses are much longer than at iteration 0."""
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
    )


def annotated_below_synthetic(figures: IterationFigures, config: TSpinConfig) -> Finding | None:
    """Warn if the trained policy finds synthetic responses likelier than annotated ones."""
    policy = figures.policy
    if policy is None or policy.gap[0] >= 0:
        return None
    y, s = policy.logps["annotated"], policy.logps["synthetic"]
    [[_, opposite], _] = policy.table
    tokens = figures.triplets.tokens
    cause = (
        "Usual causes: prompt or response masked or templated wrongly (compare `prompt` and "
        "`annotated` in iteration_0/triplets/train.parquet with your data), or too little "
        "training: raise `learning_rate` or `num_epochs`"
    )
    if config.has_reference:
        cause = (
            f"`t_spin.method: {config.method}` rewards a response relative to a "
            "reference policy, which allows this (figure 3 of the paper). `t_spin.method: t_spin` "
            "does not"
        )
    return Finding(
        figures.iteration,
        "annotated below synthetic",
        f"after training, log π(y|x) = {y:.1f} is below log π(y′|x) = {s:.1f} (means over "
        f"{policy.rows} triplets; a gap of {policy.gap[0]:.1f} nats; {opposite} triplets have the "
        f"higher reward and yet the lower likelihood; y has {tokens['annotated']:.0f} tokens, y′ "
        f"{tokens['synthetic']:.0f}). {cause}",
    )


def collapse(
    figures: IterationFigures, before: PolicyFigures | None, beta: float
) -> Finding | None:
    """Warn if the annotated responses lost much of their likelihood in one iteration after the
    first.

    Args:
        before: figures of the iteration before.
        beta: the β in force in this iteration.
    """
    after = figures.policy
    if after is None or before is None:
        return None
    then, now = before.logps_per_token["annotated"], after.logps_per_token["annotated"]
    if now >= then * (1 + COLLAPSE) or now >= then - COLLAPSE_NATS:
        return None
    cause = (
        f"Usual cause: the historical term is over-weighted (β = {beta:g}). Set `t_spin.beta` to "
        f"{HIGH_BETA} or less, and train from the iteration before"
        if beta > HIGH_BETA
        else f"β = {beta:g} is not high, so the step size is the likelier cause: lower "
        "`learning_rate` or `num_epochs`"
    )
    return Finding(
        figures.iteration,
        "collapse",
        f"log π(y|x) fell from {then:.2f} to {now:.2f} nats per token in this iteration: the "
        f"policy is losing what it was taught. {cause}",
    )


def saturated(iteration: int, logs: Mapping[str, Any], alpha: float) -> Finding | None:
    """Warn if almost no triplet has a gradient left.

    Args:
        logs: an entry of the training log.
    """
    share = logs.get("saturation/both")
    if share is None or share < MOSTLY_SATURATED:
        return None
    return Finding(
        iteration,
        "saturated",
        f"at step {logs.get('step', 0)} the gradient of {share:.0%} of the triplets was all but "
        f"zero: α·u = {logs['rewards/margins']:.1f} and α·v = "
        f"{logs['rewards/historical_margins']:.1f} saturate ℓ′ (weights below 0.01). Usual cause: "
        "log-probabilities are sums over long responses that are easy to distinguish. Lower "
        f"`t_spin.alpha` (now {alpha:g}) to 0.1, or stop here: these triplets teach nothing more",
    )


def sampling_findings(sampling: Sampling, first: Sampling, config: TSpinConfig) -> list[Finding]:
    """List the warnings about a generation step; `first` is iteration 0's."""
    found = [
        cut_at_the_limit(sampling, config.generation.max_new_tokens),
        length_explosion(sampling, first),
    ]
    return [finding for finding in found if finding]


def findings_of_sampling(run: RunDirectory, number: int, config: TSpinConfig) -> list[Finding]:
    """List the warnings about an iteration's training triplets, trained or not."""
    first, sampling = (sampling_figures(run, t) for t in (0, number))
    return sampling_findings(sampling, first, config)


def run_findings(
    figures: Sequence[IterationFigures],
    logs: Sequence[Sequence[Mapping[str, Any]]],
    betas: Sequence[float],
    config: TSpinConfig,
) -> list[Finding]:
    """List the warnings about all trained iterations.

    Args:
        figures, logs, betas: for iterations 0, 1, …: figures, training log, and the β in force.
    """
    found: list[Finding | None] = []
    before: PolicyFigures | None = None
    for one, log, beta in zip(figures, logs, betas, strict=True):
        found += sampling_findings(one.sampling, figures[0].sampling, config)
        found += [
            foreign_anchor(one),
            annotated_below_synthetic(one, config),
            collapse(one, before, beta),
            next(filter(None, (saturated(one.iteration, e, config.alpha) for e in log)), None),
        ]
        before = one.policy
    return [finding for finding in found if finding]


def findings_of_run(run: RunDirectory, config: TSpinConfig) -> list[Finding]:
    """Read the run directory and list the warnings about all trained iterations."""
    figures = run_figures(run, config)
    records = [run.iteration(f.iteration).training_record() for f in figures]
    return run_findings(
        figures,
        [record["log_history"] for record in records],
        [record.get("beta", config.beta) for record in records],
        config,
    )
