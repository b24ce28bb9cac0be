"""Pictures of the report (matplotlib, no display needed): one or several runs on the same axes."""

import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from axolotl_tspin.diagnostics.evaluation import TaskScore
from axolotl_tspin.diagnostics.figures import IterationFigures

RESPONSE_STYLES = {
    "annotated": ("y annotated", "#1b7837"),
    "synthetic": ("y′ synthetic", "#2166ac"),
    "proto_synthetic": ("y0 proto-synthetic", "#b2182b"),
}
RUN_COLOURS = ("#2166ac", "#b2182b", "#1b7837", "#762a83", "#e08214", "#35978f")


class RunData(NamedTuple):
    """Data of a run for the pictures.

    Attributes:
        logs: the training log of every iteration that has one.
        scores: scores of lm-evaluation-harness, by iteration; −1 is the initial policy.
    """

    name: str
    figures: list[IterationFigures]
    logs: list[list[dict[str, Any]]]
    scores: dict[int, list[TaskScore]]


def training_curves(runs: Sequence[RunData]) -> bytes | None:
    """Draw log-likelihoods and rewards of the three responses in training (paper's figure 3)."""
    if not any(_steps(run, "logps/annotated")[0] for run in runs):
        return None
    figure = Figure(figsize=(1 + 4.4 * len(runs), 5.6), layout="constrained")
    axes = figure.subplots(2, len(runs), squeeze=False, sharex="col")
    for column, run in enumerate(runs):
        for row, prefix in enumerate(("logps", "rewards")):
            axis = axes[row][column]
            for response, (label, colour) in RESPONSE_STYLES.items():
                steps, values, ends = _steps(run, f"{prefix}/{response}")
                axis.plot(steps, values, color=colour, label=label, linewidth=1.4)
            _mark_iterations(axis, ends)
        axes[0][column].set_title(run.name, fontsize=10)
        axes[1][column].set_xlabel("optimizer step; dashed: a new iteration")
    axes[0][0].set_ylabel("log π (nats)")
    axes[1][0].set_ylabel("reward")
    axes[0][0].legend(fontsize=8)
    return _png(figure)


def gap_per_iteration(runs: Sequence[RunData]) -> bytes | None:
    """Draw log π(y|x) − log π(y′|x) after each iteration, with 95% intervals (figure 7)."""
    figure, axis = _axis("after iteration", "log π(y|x) − log π(y′|x) (nats)")
    drawn = False
    for run, colour in _coloured(runs):
        scored = [(f.iteration, f.policy.gap) for f in run.figures if f.policy]
        if not scored:
            continue
        drawn = True
        iterations = [iteration for iteration, _ in scored]
        means = [gap[0] for _, gap in scored]
        errors = [0.0 if gap[2] is None else gap[2] - gap[0] for _, gap in scored]
        axis.errorbar(
            iterations, means, errors, color=colour, label=run.name, marker="o", capsize=3
        )
    axis.axhline(0, color="black", linewidth=0.8)
    return _finished(figure, axis, runs) if drawn else None


def gradient_norms(runs: Sequence[RunData]) -> bytes | None:
    """Draw ‖∇L‖ in training: of the whole loss, and of its two terms if they were measured."""
    styles = {
        "grad_norm": ("whole loss", "#888888"),
        "grad_norm/current": ("current term", "#2166ac"),
        "grad_norm/historical": ("historical term", "#b2182b"),
    }
    if not any(_steps(run, "grad_norm")[0] for run in runs):
        return None
    figure = Figure(figsize=(1 + 4.4 * len(runs), 3.2), layout="constrained")
    axes = figure.subplots(1, len(runs), squeeze=False, sharey=True)[0]
    for axis, run in zip(axes, runs, strict=True):
        for key, (label, colour) in styles.items():
            steps, values, ends = _steps(run, key)
            positive = [(s, v) for s, v in zip(steps, values, strict=True) if v > 0]
            if positive:
                marker = "." if len(positive) < 60 else None
                axis.plot(*zip(*positive, strict=True), color=colour, label=label, marker=marker)
            if key == "grad_norm":
                _mark_iterations(axis, ends)
        axis.set_yscale("log")
        axis.set_title(run.name, fontsize=10)
        axis.set_xlabel("optimizer step; dashed: a new iteration")
    axes[0].set_ylabel("‖∇‖")
    axes[0].legend(fontsize=8)
    return _png(figure)


def saturation(runs: Sequence[RunData]) -> bytes | None:
    """Draw the share of triplets with (almost) no gradient left, in training."""
    if not any(_steps(run, "saturation/both")[0] for run in runs):
        return None
    figure, axis = _axis("optimizer step", "share of triplets without a gradient")
    for run, colour in _coloured(runs):
        steps, values, _ = _steps(run, "saturation/both")
        axis.plot(steps, values, color=colour, label=run.name)
    axis.set_ylim(-0.02, 1.02)
    return _finished(figure, axis, runs)


def response_statistics(runs: Sequence[RunData]) -> bytes | None:
    """Draw lengths, copies, repetition and variety of the sampled responses, by iteration."""
    if not any(run.figures for run in runs):
        return None
    figure = Figure(figsize=(10.5, 2.9), layout="constrained")
    axes = figure.subplots(1, 4)
    panels: list[tuple[str, Callable[[IterationFigures], float]]] = [
        ("tokens in y′", lambda f: f.triplets.tokens["synthetic"]),
        ("share of y′ = y", lambda f: f.triplets.same_as_annotated),
        ("repeated 4-grams in y′", lambda f: f.triplets.repetition["synthetic"]),
        ("distinct-2 of y′", lambda f: f.triplets.distinct["synthetic"][1]),
    ]
    references: list[Callable[[IterationFigures], float] | None] = [
        lambda f: f.triplets.tokens["annotated"],
        None,
        lambda f: f.triplets.repetition["annotated"],
        lambda f: f.triplets.distinct["annotated"][1],
    ]
    for axis, (title, value), reference in zip(axes, panels, references, strict=True):
        for run, colour in _coloured(runs):
            iterations = [f.iteration for f in run.figures]
            axis.plot(iterations, [value(f) for f in run.figures], color=colour, marker="o")
        first = next(run.figures[0] for run in runs if run.figures)
        if reference:
            axis.axhline(reference(first), color="black", linestyle="--", linewidth=0.9)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("iteration")
        axis.set_ylim(bottom=0)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _png(figure)


def evaluation_scores(runs: Sequence[RunData]) -> bytes | None:
    """Draw the harness's scores by iteration, one panel per task; −1 is the initial policy."""
    tasks = list(
        dict.fromkeys(s.task for run in runs for scores in run.scores.values() for s in scores)
    )
    if not tasks:
        return None
    columns = min(len(tasks), 4)
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(1 + 2.8 * columns, 2.7 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, task in zip(axes, tasks, strict=False):
        for run, colour in _coloured(runs):
            points = [
                (iteration, score.value, score.stderr or 0.0)
                for iteration, scores in sorted(run.scores.items())
                for score in scores
                if score.task == task
            ]
            if points:
                style = {"color": colour, "label": run.name, "marker": "o", "capsize": 3}
                axis.errorbar(*zip(*points, strict=True), **style)
        axis.set_title(task, fontsize=9)
        axis.set_xlabel("iteration (−1: initial)")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(runs) > 1:
        axes[0].legend(fontsize=8)
    for axis in axes[len(tasks) :]:
        axis.set_axis_off()
    return _png(figure)


PICTURES: dict[str, Callable[[Sequence[RunData]], bytes | None]] = {
    "training_curves": training_curves,
    "gap": gap_per_iteration,
    "gradient_norms": gradient_norms,
    "saturation": saturation,
    "responses": response_statistics,
    "evaluation": evaluation_scores,
}
"""The functions that draw, by the name of their PNG."""


def _steps(run: RunData, key: str) -> tuple[list[int], list[float], list[int]]:
    """List steps (counted through all iterations), a metric's values, and each iteration's end."""
    steps, values, ends, offset = [], [], [], 0
    for log in run.logs:
        for entry in log:
            if key in entry:
                steps.append(offset + entry["step"])
                values.append(float(entry[key]))
        offset += max((entry["step"] for entry in log), default=0)
        ends.append(offset)
    return steps, values, ends


def _mark_iterations(axis: Any, ends: list[int]) -> None:
    for end in ends[:-1]:
        axis.axvline(end + 0.5, color="#999999", linestyle="--", linewidth=0.8)


def _coloured(runs: Sequence[RunData]) -> list[tuple[RunData, str]]:
    return [(run, RUN_COLOURS[i % len(RUN_COLOURS)]) for i, run in enumerate(runs)]


def _axis(x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axis = figure.subplots()
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axis


def _finished(figure: Figure, axis: Any, runs: Sequence[RunData]) -> bytes:
    if len(runs) > 1:
        axis.legend(fontsize=8)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
