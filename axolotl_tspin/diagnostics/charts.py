"""The report's charts: which figures of runs are drawn, under which name."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from axolotl_tspin.diagnostics.figures import NORMAL_95, IterationFigures
from axolotl_tspin.diagnostics.run_data import RunData
from axolotl_tspin.diagnostics.svg import Point, Series, axes_of, draw, number, sample_line

STEPS = "optimizer step; dashed lines: a new iteration"
OF_RESPONSES = [("annotated", "y", "y"), ("synthetic", "y′", "s"), ("proto_synthetic", "y0", "p")]
"""Of each response: its name in the files, in the legend, and its style."""


class Key(NamedTuple):
    """A line of the legend, with the first and the last value of its series."""

    line: Markup
    name: str
    first: str
    last: str


class Panel(NamedTuple):
    """A run's drawing in a chart."""

    run: str
    drawing: Markup
    keys: list[Key]


class Chart(NamedTuple):
    """One chart; `name` is the end of links to it."""

    name: str
    title: str
    note: str
    panels: list[Panel]


class StepChart(NamedTuple):
    """A chart of logged values: keys of the log, each with its name in the legend and its style."""

    name: str
    title: str
    note: str
    lines: list[tuple[str, str, str]]
    is_log: bool = False
    with_zero: bool = False


def _of_responses(key: str) -> list[tuple[str, str, str]]:
    return [(key.format(response), name, style) for response, name, style in OF_RESPONSES]


STEP_CHARTS = [
    StepChart(
        "logps-per-token",
        "log π per token",
        "In nats. y should hold or rise, and stay above y′.",
        _of_responses("logps/{}_per_token"),
    ),
    StepChart(
        "logps",
        "log π, sums over a response",
        "In nats. Long responses have lower sums than short ones.",
        _of_responses("logps/{}"),
    ),
    StepChart(
        "loss",
        "Loss",
        "Of the current term, of the historical one, and of both.",
        [
            ("loss", "both", "y"),
            ("loss/current", "current", "s"),
            ("loss/historical", "historical", "p"),
        ],
        with_zero=True,
    ),
    StepChart(
        "margins",
        "Gap in training: log π(y) − log π(y′)",
        "In nats. It rises within an iteration, and falls when y′ is sampled again.",
        [("logps/margins", "gap", "y")],
        with_zero=True,
    ),
    StepChart(
        "order",
        "Triplets in the wanted order",
        "The share of log π(y) > log π(y′).",
        [("logps/accuracies", "share", "y")],
        with_zero=True,
    ),
    StepChart(
        "saturation",
        "Triplets without a gradient",
        "The share whose gradient is weighted by less than 0.01. Near 1 these triplets teach "
        "nothing more.",
        [
            ("saturation/both", "both terms", "y"),
            ("saturation/current", "current", "s"),
            ("saturation/historical", "historical", "p"),
        ],
        with_zero=True,
    ),
    StepChart(
        "gradients",
        "Norm of the gradient",
        "Of the whole loss, and of its two terms if `t_spin.gradient_norms` measures them.",
        [
            ("grad_norm", "whole loss", "y"),
            ("grad_norm/current", "current term", "s"),
            ("grad_norm/historical", "historical term", "p"),
        ],
        is_log=True,
    ),
]
REWARDS = StepChart(
    "rewards",
    "Rewards",
    "Relative to the policy that the iteration started from: y can have the higher reward and yet "
    "the lower likelihood.",
    _of_responses("rewards/{}"),
)
"""Only of methods with a reference: elsewhere rewards are log π times α."""


def charts_of(runs: Sequence[RunData]) -> list[Chart]:
    """Draw every chart that a run has values for."""
    with_reference = any(data.config.has_reference for data in runs)
    kinds = [*STEP_CHARTS, *([REWARDS] if with_reference else [])]
    found = [
        _chart(
            (kind.name, kind.title, kind.note),
            [(data, step_series(data, kind)) for data in runs],
            x=STEPS,
            is_log=kind.is_log,
            with_zero=kind.with_zero,
            marks={data.name: iteration_ends(data)[:-1] for data in runs},
        )
        for kind in kinds
    ]
    for (name, title, note), series_of in ITERATION_CHARTS.items():
        found.append(
            _chart(
                (name, title, note),
                [(data, series_of(data)) for data in runs],
                x="iterations that the policy was trained for",
                with_zero=name not in ("policies", "after-per-token", "after"),
            )
        )
    found += [_benchmark(task, runs) for task in _tasks(runs)]
    return [chart for chart in found if chart is not None]


def step_series(data: RunData, kind: StepChart) -> list[Series]:
    """Read the series of a chart from the logs: training, and held-out triplets where the run
    evaluates. Steps are counted through all iterations."""
    offsets = [0, *iteration_ends(data)]
    found = []
    for key, name, style in kind.lines:
        for prefix, held_out in (("", False), ("eval_", True)):
            points = [
                Point(offset + entry["step"], float(entry[prefix + key]))
                for offset, log in zip(offsets, data.logs, strict=False)
                for entry in log
                if prefix + key in entry
            ]
            if kind.is_log:
                points = [point for point in points if point.y > 0]
            found.append(Series(_held(name, held_out), style, points, held_out))
    return found


def iteration_ends(data: RunData) -> list[int]:
    """List the last step of every iteration that has a log, counted through all iterations."""
    ends, offset = [], 0
    for log in data.logs:
        if log:
            offset += max(entry["step"] for entry in log)
            ends.append(offset)
    return ends


def policy_points(data: RunData, name: str) -> list[Point]:
    """List a figure of the evidence, of the initial policy and of every trained one."""
    found: dict[int, float] = {}
    for evidence in data.evidences:
        if evidence is not None:
            figure = evidence.figure(name)
            for number, value in ((evidence.first, figure.before), (evidence.last, figure.after)):
                if value is not None:
                    found.setdefault(number, value)
    return [Point(number, found[number]) for number in sorted(found)]


def _policies(data: RunData) -> Iterator[Series]:
    yield _measured(data, "logps/annotated_per_token", "y", "y", _is_held_out(data))


def _gap(data: RunData) -> Iterator[Series]:
    points = [Point(f.iteration + 1, *f.policy.gap) for f in data.figures if f.policy]
    yield Series("gap", "y", points)


def _after_per_token(data: RunData) -> Iterator[Series]:
    for response, name, style in OF_RESPONSES:
        scored = [(f.iteration + 1, f.policy.logps_per_token) for f in data.figures if f.policy]
        yield Series(name, style, [Point(x, logps[response]) for x, logps in scored])


def _after(data: RunData) -> Iterator[Series]:
    for response, name, style in OF_RESPONSES:
        scored = [(f.iteration + 1, f.policy.logps) for f in data.figures if f.policy]
        yield Series(name, style, [Point(x, logps[response]) for x, logps in scored])


def _accuracy(data: RunData) -> Iterator[Series]:
    yield _measured(data, "accuracy", "accuracy", "y", _is_held_out(data))


def _lengths(data: RunData) -> Iterator[Series]:
    for response, name, style in OF_RESPONSES:
        points = [Point(f.iteration, f.triplets.tokens[response]) for f in data.figures]
        yield Series(name, style, points)
    yield from _also_held_out(data, "tokens")


def _cut(data: RunData) -> Iterator[Series]:
    yield _sampled(data, "y′", "s", lambda f: f.sampling.cut_share)
    yield from _also_held_out(data, "cut")


def _repetition(data: RunData) -> Iterator[Series]:
    yield _sampled(data, "y", "y", lambda f: f.triplets.repetition["annotated"])
    yield _sampled(data, "y′", "s", lambda f: f.triplets.repetition["synthetic"])
    yield from _also_held_out(data, "repetition")


def _variety(data: RunData) -> Iterator[Series]:
    yield _sampled(data, "distinct-2 of y", "y", lambda f: f.triplets.distinct["annotated"][1])
    yield _sampled(data, "distinct-2 of y′", "s", lambda f: f.triplets.distinct["synthetic"][1])
    yield _sampled(data, "share of y′ = y", "p", lambda f: f.triplets.same_as_annotated)


ITERATION_CHARTS: dict[tuple[str, str, str], Callable[[RunData], Iterator[Series]]] = {
    (
        "policies",
        "log π(y) per token, policy by policy",
        "In nats, over the same prompts each time. The verdicts are about it.",
    ): _policies,
    (
        "gap",
        "Gap after training: log π(y) − log π(y′)",
        "In nats, over each iteration's own triplets, with 95% intervals. It should be above 0.",
    ): _gap,
    (
        "after-per-token",
        "log π per token after training",
        "In nats, over each iteration's own triplets.",
    ): _after_per_token,
    (
        "after",
        "log π after training, sums over a response",
        "In nats, over each iteration's own triplets.",
    ): _after,
    ("accuracy", "Accuracy", "The share of right answers (`t_spin.answer`)."): _accuracy,
    ("lengths", "Tokens of a response", "y′ should come closer to y."): _lengths,
    ("cut", "Responses cut at the limit", "The share of y′ with `max_new_tokens`."): _cut,
    (
        "repetition",
        "Repeated 4-grams",
        "The share within a response. A rise is a sign of collapse.",
    ): _repetition,
    (
        "variety",
        "Variety",
        "Distinct 2-grams over all 2-grams, and the share of y′ that are y, token for token.",
    ): _variety,
}
"""Name, title and note of the charts by iteration, and what gives their series."""


def _benchmark(task: str, runs: Sequence[RunData]) -> Chart | None:
    def series_of(data: RunData) -> list[Series]:
        points, metric = [], ""
        for trained, scores in sorted(data.scores.items()):
            for score in scores:
                if score.task == task:
                    error = None if score.stderr is None else NORMAL_95 * score.stderr
                    ends = (
                        (None, None)
                        if error is None
                        else (score.value - error, score.value + error)
                    )
                    points.append(Point(trained, score.value, *ends))
                    metric = score.metric.split(",")[0]
        return [Series(metric, "y", points)]

    return _chart(
        (f"benchmark-{task}", task, "By lm-evaluation-harness, with 95% intervals."),
        [(data, series_of(data)) for data in runs],
        x="iterations that the policy was trained for",
    )


def _tasks(runs: Sequence[RunData]) -> list[str]:
    return list(
        dict.fromkeys(s.task for data in runs for found in data.scores.values() for s in found)
    )


def _chart(
    words: tuple[str, str, str],
    found: Sequence[tuple[RunData, Iterable[Series]]],
    *,
    x: str,
    is_log: bool = False,
    with_zero: bool = False,
    marks: Mapping[str, Sequence[float]] | None = None,
) -> Chart | None:
    """Draw each run's series over the same range of y; None if there is no value."""
    name, title, note = words
    drawn = [(data, [one for one in series if one.points]) for data, series in found]
    drawn = [(data, series) for data, series in drawn if series]
    if not drawn:
        return None
    y = axes_of([s for _, series in drawn for s in series], is_log=is_log, with_zero=with_zero).y
    panels = []
    for data, series in drawn:
        axes = axes_of(series, is_log=is_log)._replace(y=y)
        lines = (marks or {}).get(data.name, ())
        panels.append(
            Panel(
                data.name,
                draw(f"{title}, {data.name}", series, axes, x=x, marks=lines),
                [
                    Key(
                        sample_line(one.style, held_out=one.held_out),
                        one.name,
                        number(one.points[0].y),
                        number(one.points[-1].y),
                    )
                    for one in series
                ],
            )
        )
    return Chart(name, title, note, panels)


def _sampled(
    data: RunData, name: str, style: str, value: Callable[[IterationFigures], float]
) -> Series:
    """Make a series of what the policies wrote for the prompts of the training."""
    return Series(name, style, [Point(f.iteration, value(f)) for f in data.figures])


def _measured(data: RunData, figure: str, name: str, style: str, held_out: bool) -> Series:
    """Make a series of a figure of the policies."""
    return Series(_held(name, held_out), style, policy_points(data, figure), held_out)


def _also_held_out(data: RunData, figure: str) -> Iterator[Series]:
    """Give the series of what the policies wrote for held-out prompts, if there are any."""
    if _is_held_out(data):
        yield _measured(data, figure, "y′", "s", held_out=True)


def _is_held_out(data: RunData) -> bool:
    return any(evidence is not None and evidence.held_out for evidence in data.evidences)


def _held(name: str, held_out: bool) -> str:
    return f"{name}, held out" if held_out else name
