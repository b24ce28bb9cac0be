"""Drawings of lines as inline SVG: no library, no outside parts.

Colours come from the page's style sheet by a series' `style`, so that they follow its theme. Every
style also has dashes of its own, and held-out series have markers: nothing is told by colour alone.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

WIDTH, HEIGHT = 340, 210
TOP, RIGHT, BOTTOM = 8, 10, 34
CHARACTER = 6.4
"""Width of a digit in the drawing's units, at the page's font size."""

MOST_POINTS = 160
MOST_MARKERS = 24


class Point(NamedTuple):
    """A value at x, with the ends of its 95% interval if it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


class Series(NamedTuple):
    """A line: the name in the legend, the style's name, and points by ascending x.

    `held_out` draws markers.
    """

    name: str
    style: str
    points: list[Point]
    held_out: bool = False


class Axes(NamedTuple):
    """Ranges of x and y that are drawn, and whether y is logarithmic."""

    x: tuple[float, float]
    y: tuple[float, float]
    is_log: bool = False


def axes_of(series: Sequence[Series], *, is_log: bool = False, with_zero: bool = False) -> Axes:
    """Find the ranges that hold every point.

    Args:
        series: at least one with a point; values above 0 if `is_log`.
        with_zero: y's range holds 0 as well.
    """
    points = [point for one in series for point in one.points]
    values = [v for p in points for v in (p.y, p.low, p.high) if v is not None]
    low, high = min(values), max(values)
    if is_log:
        return Axes(_apart(points), (low / 1.3, high * 1.3), True)
    if with_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    bottom = low if with_zero and low == 0 else low - room
    return Axes(_apart(points), (bottom, high + room))


def draw(
    title: str, series: Sequence[Series], axes: Axes, *, x: str, marks: Sequence[float]
) -> Markup:
    """Draw lines over one pair of axes.

    Args:
        title: for readers who do not see it.
        x: the label of the axis below.
        marks: places of vertical lines, such as the ends of iterations.

    Returns:
        The SVG. Each series' group has its values in `data-x` and `data-y`, which the page's script
        shows at the pointer.
    """
    ticks = _log_ticks(axes.y) if axes.is_log else _ticks(*axes.y)
    left = 8 + CHARACTER * max(len(number(tick)) for tick in ticks)

    def across(value: float) -> float:
        low, high = axes.x
        return left + (value - low) / (high - low) * (WIDTH - left - RIGHT)

    def down(value: float) -> float:
        low, high, at = map(math.log if axes.is_log else float, (*axes.y, value))
        return TOP + (high - at) / (high - low) * (HEIGHT - TOP - BOTTOM)

    floor = HEIGHT - BOTTOM
    parts = []
    for tick in ticks:
        parts.append(f'<path class="grid" d="M{left:.1f} {down(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(
            f'<text x="{left - 5:.1f}" y="{down(tick) + 4:.1f}" text-anchor="end">'
            f"{number(tick)}</text>"
        )
    for tick in _ticks(*axes.x, whole=True):
        parts.append(
            f'<text x="{across(tick):.1f}" y="{floor + 15}" text-anchor="middle">'
            f"{number(tick)}</text>"
        )
    for mark in marks:
        parts.append(f'<path class="mark" d="M{across(mark):.1f} {TOP}V{floor}"/>')
    for one in series:
        points = thinned(one.points)
        places = [(across(p.x), down(p.y)) for p in points]
        kind = f"{one.style} held" if one.held_out else one.style
        parts.append(
            f'<g class="series {kind}" data-name="{escape(one.name)}" '
            f'data-x="{" ".join(number(p.x) for p in points)}" '
            f'data-y="{" ".join(number(p.y) for p in points)}">'
            f'<polyline points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in places)}"/>'
        )
        for point, (a, _) in zip(points, places, strict=True):
            if point.low is not None and point.high is not None:
                parts.append(
                    f'<path class="interval" d="M{a:.1f} {down(point.low):.1f}'
                    f'V{down(point.high):.1f}"/>'
                )
        if one.held_out or len(points) == 1:
            for a, b in places[:: -(-len(places) // MOST_MARKERS)]:
                parts.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3"/>')
        parts.append("</g>")
    parts.append(
        f'<path class="axis" d="M{left:.1f} {TOP}V{floor}H{WIDTH - RIGHT}"/>'
        f'<text x="{(left + WIDTH - RIGHT) / 2:.1f}" y="{HEIGHT - 4}" text-anchor="middle">'
        f"{escape(x)}</text>"
    )
    return Markup(
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


def sample_line(style: str, *, held_out: bool) -> Markup:
    """Draw a short line in a series' style, for a legend."""
    kind = f"{style} held" if held_out else style
    marker = '<circle cx="15" cy="6" r="3"/>' if held_out else ""
    return Markup(
        '<svg class="sample" viewBox="0 0 30 12" aria-hidden="true"><g class="series '
        f'{kind}"><polyline points="1,6 29,6"/>{marker}</g></svg>'
    )


def thinned(points: Sequence[Point]) -> list[Point]:
    """Keep at most `MOST_POINTS` points: the ends, and the lowest and highest of each stretch, so
    that spikes stay."""
    if len(points) <= MOST_POINTS:
        return list(points)
    stretches = MOST_POINTS // 2 - 1
    inner = points[1:-1]
    kept = [0, len(points) - 1]
    for i in range(stretches):
        part = range(1 + i * len(inner) // stretches, 1 + (i + 1) * len(inner) // stretches)
        kept += [min(part, key=lambda j: points[j].y), max(part, key=lambda j: points[j].y)]
    return [points[i] for i in sorted(set(kept))]


def number(value: float) -> str:
    """Write a number with at most four significant digits, and a true minus."""
    text = f"{value:.0f}" if value == round(value) and abs(value) < 1e6 else f"{value:.4g}"
    return "0" if text == "-0" else text.replace("-", "−")


def _apart(points: Sequence[Point]) -> tuple[float, float]:
    low, high = min(p.x for p in points), max(p.x for p in points)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Choose three to six round numbers within a range."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    if whole:
        step = max(step, 1.0)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _log_ticks(ends: tuple[float, float]) -> list[float]:
    """Choose powers of 10 within a range, or where there are few, 2 and 5 times them as well."""
    first, last = (math.floor(math.log10(end)) for end in ends)
    powers = [10.0**p for p in range(first, last + 1)]
    if len(powers) < 4:
        powers = [power * m for power in powers for m in (1, 2, 5)]
    inside = [tick for tick in powers if ends[0] <= tick <= ends[1]]
    return inside[:: -(-len(inside) // 6)] if inside else list(ends)
