"""Figures of the initial and of the last trained policy, one tile each: before → after.

A tile says in words what its 95% interval settles, and is judged only as far as that.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

from axolotl_tspin.diagnostics.evaluation import TaskScore
from axolotl_tspin.diagnostics.figures import NORMAL_95
from axolotl_tspin.diagnostics.run_data import RunData
from axolotl_tspin.run.tables import read_metadata
from axolotl_tspin.verdicts.evidence import Figure

Judgement = Literal["better", "worse", ""]

LOWER_IS_BETTER = ("perplexity", "bits_per_byte")
"""Parts of the names of the harness's metrics that are losses."""


class Tile(NamedTuple):
    """What one figure did.

    Attributes:
        after: None if it is not known.
        change: the change and the ends of its interval, or why there is none.
        word: what the interval settles, with a symbol before it.
        judgement: "" if the interval settles nothing, or if neither direction is the better one.
    """

    label: str
    before: str | None
    after: str | None
    change: str
    word: str
    judgement: Judgement


class Kind(NamedTuple):
    """How a figure is shown, and which change of it is for the better."""

    label: str
    shown: str
    judge: Callable[[float, float], Judgement]


def _higher(before: float, after: float) -> Judgement:
    return "better" if after > before else "worse"


def _lower(before: float, after: float) -> Judgement:
    return _higher(after, before)


def _nearer_to_1(before: float, after: float) -> Judgement:
    """Judges no step from one side of 1 to the other: it may go too far."""
    if (before - 1) * (after - 1) < 0:
        return ""
    return _lower(abs(before - 1), abs(after - 1))


KINDS = {
    "logps/annotated_per_token": Kind("log π(y) per token", "{:.3f}", _higher),
    "logps/annotated": Kind("log π(y), sum", "{:.1f}", _higher),
    "accuracy": Kind("accuracy", "{:.1%}", _higher),
    "length_ratio": Kind("tokens of y′ relative to y", "{:.2f}", _nearer_to_1),
    "cut": Kind("y′ cut at the limit", "{:.1%}", _lower),
    "repetition": Kind("repeated 4-grams in y′", "{:.1%}", _lower),
}


def tiles_of_run(data: RunData) -> list[Tile]:
    """List a run's tiles: the figures measured, then benchmark scores."""
    tiles = []
    if data.whole is not None:
        for name, kind in KINDS.items():
            figure = data.whole.figure(name)
            if figure.before is not None or figure.after is not None:
                tiles.append(tile_of(figure, kind))
    return tiles + score_tiles(data.scores, data.trained)


def tile_of(figure: Figure, kind: Kind) -> Tile:
    """Describe a figure before and after."""

    def shown(value: float | None) -> str | None:
        return None if value is None else kind.shown.format(value).replace("-", "−")

    def signed(value: float) -> str:
        return kind.shown.replace("{:", "{:+").format(value).replace("-", "−")

    low, high = figure.low, figure.high
    word = ""
    judgement: Judgement = ""
    if figure.change is None:
        known = "last" if figure.before is None else "initial"
        change = f"only the {known} model's is known"
    elif low is None or high is None:
        change, word = f"{signed(figure.change)}, no interval", "? not settled"
    elif low == high == 0:
        change, word = "on every prompt", "= unchanged"
    else:
        change = f"{signed(figure.change)} (95%: {signed(low)} to {signed(high)})"
        word = "▲ rose" if low > 0 else "▼ fell" if high < 0 else "? not settled"
        if (low > 0 or high < 0) and figure.before is not None and figure.after is not None:
            judgement = kind.judge(figure.before, figure.after)
    return Tile(kind.label, shown(figure.before), shown(figure.after), change, word, judgement)


def score_tiles(scores: dict[int, list[TaskScore]], trained: int) -> list[Tile]:
    """Compare the initial policy's benchmark scores with the last trained policy's.

    Args:
        scores: by the number of iterations that the policy was trained for.
    """
    first, last = ({s.task: s for s in scores.get(number, [])} for number in (0, trained))
    if not trained:
        last = {}
    tiles = []
    for task in dict.fromkeys([*first, *last]):
        one, other = first.get(task), last.get(task)
        metric = (other or first[task]).metric
        kind = Kind(
            f"{task} ({metric.split(',')[0]})",
            "{:.3f}",
            _lower if any(part in metric for part in LOWER_IS_BETTER) else _higher,
        )
        tiles.append(tile_of(score_figure(one, other), kind))
    return tiles


def score_figure(before: TaskScore | None, after: TaskScore | None) -> Figure:
    """Compare two scores of one task; the interval takes them for independent."""
    figure = Figure(before=before and before.value, after=after and after.value)
    if before is None or after is None or before.metric != after.metric:
        return figure
    figure.change = after.value - before.value
    if before.stderr is not None and after.stderr is not None:
        error = NORMAL_95 * math.hypot(before.stderr, after.stderr)
        figure.low, figure.high = figure.change - error, figure.change + error
    return figure


def costs_of_run(data: RunData) -> dict[str, str]:
    """Describe the time and the tokens that a run has spent so far."""
    run, config = data.run, data.config
    files = [
        path
        for number in range(config.iterations + 1)
        for split in run.splits()
        if (path := run.iteration(number).triplets(split)).exists()
    ]
    sampled = [read_metadata(path, verify=False) for path in files]
    seconds = [e["train_runtime"] for log in data.logs for e in log if "train_runtime" in e]
    costs = {}
    if sampled:
        costs["sampling"] = (
            f"{duration(sum(m['seconds'] for m in sampled))}, "
            f"{sum(m['sampled'] for m in sampled):,} responses, "
            f"{sum(m['tokens'] for m in sampled):,} tokens"
        )
    if seconds:
        # Axolotl counts from the beginning of each training.
        tokens = [max((e.get("tokens/total", 0) for e in log), default=0) for log in data.logs]
        costs["training"] = duration(sum(seconds))
        if sum(tokens):
            costs["training"] += f", {sum(tokens):,.0f} tokens"
    return costs


def duration(seconds: float) -> str:
    """Write seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
