"""Charts as matplotlib's SVG inside of a page: in its colours and fonts, light or dark, the same bytes each time."""

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.report import facts

INK, FAINT = "#0a0b0c", "#0a0b0d"
LINES = tuple(f"#0a0c{k:02x}" for k in range(8))
"""Colours that stand for those of the page, which has a variable for each."""
DASHES = ("-", "--", ":", "-.")
"""Lines past the eighth colour are told from the first ones by these."""
WIDTH = 4.6
"""Inches; a chart is scaled to its place on the page."""


def colours(svg: str) -> str:
    """The page's variables in the place of what stands for them."""
    names = {INK: "ink", FAINT: "faint"} | {colour: f"line{k}" for k, colour in enumerate(LINES)}
    return re.sub("#0a0[bc][0-9a-f]{2}", lambda found: f"var(--{names[found[0]]})", svg)


def svg(figure: Any, salt: str) -> str:
    """A figure as an element of a page: without metadata, a style of its own, or names that mean nothing."""
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    (inside,) = re.findall(r"<svg[^>]*>(.*)</svg>", text, re.S)
    (box,) = re.findall(r'viewBox="([^"]*)"', text)
    inside = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", inside, flags=re.S)
    used = set(re.findall(r"#([\w-]+)", inside))
    inside = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", inside)
    inside = re.sub(r"font-family: [^;\"]*; ?", "", inside)
    return colours(f'<svg viewBox="{box}" aria-hidden="true">{" ".join(inside.split())}</svg>')


def canvas(rows: int) -> tuple[Any, Any]:
    """A figure with room for so many rows of a legend, and its plot, in the page's colours. Margins are fixed, since
    a layout that adapts draws everything twice."""
    from matplotlib.figure import Figure

    below = 0.45 + 0.17 * rows
    height = 2.3 + below
    figure = Figure(figsize=(WIDTH, height), dpi=72)
    plot = figure.add_axes((0.125, below / height, 0.855, 2.05 / height))
    for side, spine in plot.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
    plot.tick_params(labelcolor=INK, labelsize=9, color=FAINT)
    plot.grid(color=FAINT, alpha=0.35, linewidth=0.6)
    plot.set_axisbelow(True)
    return figure, plot


def lines(chart: facts.Chart, percent: bool) -> str:
    """The curves of a chart over the steps, one of a single point as a level line; ``percent``: of shares."""
    several = len(chart.curves) > 1
    figure, plot = canvas((len(chart.curves) + 1) // 2 if several else 0)
    handles = []
    for k, curve in enumerate(chart.curves):
        values = np.array(curve.values) * (100 if percent else 1)
        look = {"color": LINES[k % len(LINES)], "linewidth": 1.6}
        if len(values) == 1:
            handles.append(plot.axhline(values[0], linestyle=(0, (4, 3)), **look))
            continue
        marker = "o" if len(values) < 20 else None
        style = DASHES[k // len(LINES) % len(DASHES)]
        handles += plot.plot(curve.steps, values, style, marker=marker, markersize=3.5, **look)
    plot.set_title("%" if percent else chart.tag, color=INK, fontsize=9, loc="left")
    plot.set_xlabel("step", color=INK, fontsize=9)
    if several:
        legend(figure, handles, [curve.label for curve in chart.curves])
    return svg(figure, f"{chart.title} {chart.tag}")


def legend(figure: Any, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """What each line is, whatever letters its name has: matplotlib hides names in _ and reads $ as mathematics."""
    box = figure.legend(handles, ["."] * len(handles), loc="lower center", ncols=2, fontsize=8, frameon=False,
                        labelcolor=INK)  # fmt: skip
    for text, label in zip(box.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(label)


def bar(difference: facts.Difference, least: float, most: float) -> str:
    """An interval as a line with its mean on it, between the bounds of its table; 0 is marked."""

    def at(value: float) -> str:
        return f"{4 + 192 * (value - least) / (most - least):.1f}"

    colour = "line0" if difference.decided else "even"
    low, mean, high, zero = (at(v) for v in (difference.low, difference.mean, difference.high, 0.0))
    return (
        f'<svg class="bar" viewBox="0 0 200 14" aria-hidden="true" style="color: var(--{colour})">'
        f'<path d="M{zero} 0V14" class="zero"/><path d="M{low} 7H{high}"/><circle cx="{mean}" cy="7" r="4.5"/></svg>'
    )
