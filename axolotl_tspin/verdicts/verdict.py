"""The verdict on an iteration or a run: a word, and a sentence with its figures.

`RULES` is the whole of it: the first rule that holds gives the word. docs/verdicts.md has the same
table.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.verdicts.evidence import Evidence, Figure, evidence_since_start, read_evidence

Word = Literal["better", "unchanged", "worse", "collapsed", "nothing learned: saturated"]

PER_TOKEN = "logps/annotated_per_token"

SMALLEST_CHANGE = 0.005
"""Nats per token: a perplexity that moves by half a percent."""

COLLAPSE_NATS, COLLAPSE_SHARE = 0.5, 0.25
DEGENERATE = 0.3
NOTICEABLE = 0.1
SATURATED_SHARE = 0.9


class Verdict(NamedTuple):
    """A word and a sentence with the figures that decided it."""

    word: Word
    sentence: str

    def __str__(self) -> str:
        return f"{self.word}: {self.sentence}"


class Rule(NamedTuple):
    """When a word holds, in the words of the documentation, and the test for it."""

    word: Word
    when: str
    holds: Callable[[Evidence], bool]


def _is_wrecked(evidence: Evidence) -> bool:
    figure = evidence.figure(PER_TOKEN)
    if not evidence.is_finite:
        return True
    if figure.before is None or figure.after is None:
        return False
    fall = figure.before - figure.after
    return fall >= COLLAPSE_NATS and fall >= COLLAPSE_SHARE * abs(figure.before)


def _is_degenerate(evidence: Evidence) -> bool:
    return any(evidence.figure(name).rose(DEGENERATE) for name in ("repetition", "empty")) or (
        evidence.figure("cut").rose(0.5)
    )


def _learned_nothing(evidence: Evidence) -> bool:
    figure = evidence.figure(PER_TOKEN)
    moved = figure.rose(SMALLEST_CHANGE) or figure.fell(SMALLEST_CHANGE)
    return (evidence.saturated or 0) >= SATURATED_SHARE and not moved


RULES = (
    Rule(
        "collapsed",
        "log π(y|x) is not finite, or fell by 0.5 nats per token and by a quarter",
        _is_wrecked,
    ),
    Rule(
        "collapsed",
        "repeated 4-grams or empty responses rose by 0.3, or cut responses by 0.5",
        _is_degenerate,
    ),
    Rule(
        "nothing learned: saturated",
        "0.9 of the logged triplets had no gradient, and log π(y|x) did not move",
        _learned_nothing,
    ),
    Rule("worse", "the accuracy fell", lambda e: e.figure("accuracy").fell(0)),
    Rule("better", "the accuracy rose", lambda e: e.figure("accuracy").rose(0)),
    Rule(
        "worse",
        "cut responses or repeated 4-grams rose by 0.1",
        lambda e: any(e.figure(name).rose(NOTICEABLE) for name in ("cut", "repetition")),
    ),
    Rule(
        "worse",
        "log π(y|x) fell by 0.005 nats per token",
        lambda e: e.figure(PER_TOKEN).fell(SMALLEST_CHANGE),
    ),
    Rule(
        "better",
        "log π(y|x) rose by 0.005 nats per token",
        lambda e: e.figure(PER_TOKEN).rose(SMALLEST_CHANGE),
    ),
    Rule("unchanged", "none of these", lambda e: True),
)


def verdict_of(evidence: Evidence) -> Verdict:
    """Judge what was measured."""
    rule = next(rule for rule in RULES if rule.holds(evidence))
    return Verdict(rule.word, sentence_of(evidence))


def sentence_of(evidence: Evidence) -> str:
    """Describe the figures that verdicts are made from."""
    of = "held-out prompts" if evidence.held_out else "prompts trained on"
    prompts = f"{evidence.prompts} {of}"
    if not evidence.is_finite:
        return f"on {prompts} log π(y|x) is not finite"
    parts = [f"log π(y|x) per token {_moved(evidence.figure(PER_TOKEN), '{:.3f}')}"]
    if evidence.figure("accuracy").change is not None:
        parts.append(f"accuracy {_moved(evidence.figure('accuracy'), '{:.1%}')}")
    if evidence.is_sampled:
        for name, words in (
            ("length_ratio", "tokens of y′ relative to y"),
            ("cut", "cut"),
            ("repetition", "repetition"),
        ):
            figure = evidence.figure(name)
            shown = "{:.2f}" if name == "length_ratio" else "{:.0%}"
            if figure.before is not None and figure.after is not None:
                parts.append(
                    f"{words} {shown.format(figure.before)} → {shown.format(figure.after)}"
                )
    if evidence.saturated is not None and evidence.saturated >= SATURATED_SHARE:
        parts.append(f"{evidence.saturated:.0%} of the triplets had no gradient")
    return f"on {prompts} " + "; ".join(parts)


def verdict_on_iteration(run: RunDirectory, number: int, config: TSpinConfig) -> Verdict | None:
    """Judge a trained iteration; None if nothing was measured."""
    evidence = read_evidence(run, number, config)
    return None if evidence is None else verdict_of(evidence)


def verdict_on_run(run: RunDirectory, config: TSpinConfig) -> Verdict | None:
    """Judge the last trained policy against the initial one; None if nothing was measured."""
    evidence = evidence_since_start(run, trained_iterations(run, config), config)
    return None if evidence is None else verdict_of(evidence)


def trained_iterations(run: RunDirectory, config: TSpinConfig) -> int:
    """Count the iterations that are trained, from the first on."""
    steps = (run.step_of(t).step for t in range(config.iterations))
    return next((t for t, step in enumerate(steps) if step != "done"), config.iterations)


def _moved(figure: Figure, shown: str) -> str:
    """Write a figure before and after, its change, and the change's interval."""
    if figure.before is None or figure.after is None or figure.change is None:
        return "not known"
    text = f"{shown.format(figure.before)} → {shown.format(figure.after)}"
    signed = shown.replace("{:", "{:+")
    text += f" ({signed.format(figure.change)}"
    if figure.low is not None and figure.high is not None:
        text += f", 95% {signed.format(figure.low)} to {signed.format(figure.high)}"
    return text + ")"
