"""Curves and intervals as SVG inside of a page, in its colours, light or dark."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.report import facts

COLOURS = 8
"""Of lines; the page has a variable for each."""
DASHES = ("none", "6 3", "1.5 3", "6 3 1.5 3")
"""Lines past the eighth colour are told from the first ones by these."""
WIDTH, HEIGHT = 340, 212
LEFT, RIGHT, TOP, BOTTOM = 46, 332, 22, 178
"""Edges of the plot, in units of the drawing."""
FEW = 20
"""Points of a curve, at most, each of which is marked."""


@dataclass(frozen=True)
class Axis:
    """Numbers from ``low`` to ``high``, which are drawn at ``begin`` and at ``end``."""

    low: float
    high: float
    begin: float
    end: float

    def at(self, value: float) -> str:
        return f"{self.begin + (self.end - self.begin) * (value - self.low) / (self.high - self.low or 1):.1f}"

    def ticks(self, count: int, least: float = 0.0) -> Iterator[float]:
        """Round numbers, ``count`` or fewer, that are at least ``least`` apart."""
        apart = max(least, (self.high - self.low) / count)
        power = 10.0 ** math.floor(math.log10(apart))
        step = next(k * power for k in (1, 2, 5, 10) if k * power >= 0.999 * apart)
        return (k * step for k in range(math.ceil(self.low / step), math.floor(self.high / step) + 1))


def axis(values: Iterable[float], begin: float, end: float) -> Axis:
    """One with a little room on both sides of what is finite among the values."""
    finite = [v for v in values if math.isfinite(v)] or [0.0]
    low, high = min(finite), max(finite)
    room = 0.04 * (high - low) or 0.5 * abs(high) or 1.0
    return Axis(low - room, high + room, begin, end)


def lines(chart: facts.Chart, percent: bool) -> Markup:
    """The curves of a chart over the steps, one of a single point as a level line; ``percent``: of shares."""
    scale = 100 if percent else 1
    curves = [[(s, v * scale) for s, v in zip(c.steps, c.values, strict=True)] for c in chart.curves]
    x = axis((s for points in curves for s, _ in points), LEFT, RIGHT)
    y = axis((v for points in curves for _, v in points), BOTTOM, TOP)
    drawn = Markup("").join([*grid(x, y), *(line(k, points, x, y) for k, points in enumerate(curves))])
    words = Markup('<text x="{}" y="13">{}</text>').format(LEFT, "%" if percent else chart.tag)
    words += Markup('<text class="end" x="{}" y="{}">step</text>').format(RIGHT, HEIGHT - 3)
    return Markup('<svg class="plot" viewBox="0 0 {} {}" aria-hidden="true">{}{}</svg>').format(
        WIDTH, HEIGHT, drawn, words
    )


def grid(x: Axis, y: Axis) -> Iterator[Markup]:
    """A line and its number at each round step and value."""
    for step in x.ticks(5, least=1):
        yield Markup('<path class="grid" d="M{0} {1}V{2}"/><text class="middle" x="{0}" y="{3}">{4}</text>').format(
            x.at(step), TOP, BOTTOM, BOTTOM + 15, number(step)
        )
    for value in y.ticks(8):
        at = y.at(value)
        yield Markup('<path class="grid" d="M{} {}H{}"/><text class="end" x="{}" y="{}">{}</text>').format(
            LEFT, at, RIGHT, LEFT - 5, float(at) + 4, number(value)
        )


def number(value: float) -> str:
    return f"{round(value, 12):,.10g}".replace("-", "−")


def line(k: int, points: Sequence[tuple[int, float]], x: Axis, y: Axis) -> Markup:
    """The ``k``-th curve of a chart."""
    at = [(x.at(step), y.at(value)) for step, value in points if math.isfinite(value)]
    marks = at if 1 < len(points) < FEW else []
    if len(points) == 1:
        at = [(edge, there) for edge in (LEFT, RIGHT) for _, there in at]
    return stroke(k, len(points), " L".join(f"{a} {b}" for a, b in at), marks)


def key(k: int, count: int) -> Markup:
    """What stands in a legend for the ``k``-th curve, of ``count`` points."""
    drawn = stroke(k, count, "0 6H26", [("13", "6")] if 1 < count < FEW else [])
    return Markup('<svg class="plot key" viewBox="0 0 26 12" aria-hidden="true">{}</svg>').format(drawn)


def stroke(k: int, count: int, path: str, marks: Iterable[tuple[str, str]]) -> Markup:
    """A path and its marks in the look of the ``k``-th curve, of ``count`` points."""
    dash = "4 3" if count == 1 else DASHES[k // COLOURS % len(DASHES)]
    circles = Markup("").join(Markup('<circle cx="{}" cy="{}" r="2.6"/>').format(a, b) for a, b in marks)
    look = f"--line: var(--line{k % COLOURS})"
    return Markup('<g style="{}"><path class="line" stroke-dasharray="{}" d="M{}"/>{}</g>').format(
        look, dash, path, circles
    )


def bar(difference: facts.Difference, least: float, most: float) -> str:
    """An interval as a line with its mean on it, between the bounds of its table; 0 is marked."""
    scale = Axis(least, most, 4, 196)
    colour = "line0" if difference.decided else "even"
    low, mean, high, zero = (scale.at(v) for v in (difference.low, difference.mean, difference.high, 0.0))
    return (
        f'<svg class="bar" viewBox="0 0 200 14" aria-hidden="true" style="color: var(--{colour})">'
        f'<path d="M{zero} 0V14" class="zero"/><path d="M{low} 7H{high}"/><circle cx="{mean}" cy="7" r="4.5"/></svg>'
    )
