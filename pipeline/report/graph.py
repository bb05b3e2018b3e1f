"""The graph of stages as a drawing: a stage a line, what it takes in to its left."""

from typing import Any

from markupsafe import Markup

WIDTH, LINE, TEXT, TOP = 380, 46, 104, 20
"""Units of the drawing: its width, the height of a stage, where its words begin, the middle of the first line."""
LETTER = 7.2
"""Width of a letter of a name, about; longer names are set closer."""


def svg(stages: Any) -> Markup:
    """``stages``: the fact of that name (`page.Fact`)."""
    rows = {stage["label"].value: i for i, stage in enumerate(stages)}
    arcs = [arc(rows[need], i) for i, stage in enumerate(stages) for need in stage["needs"].value]
    text = f"Graph of {len(rows)} stages: " + "; ".join(
        f"{s['label'].value} needs {', '.join(s['needs'].value) or 'nothing'}" for s in stages
    )
    body = Markup("").join([*arcs, *(line(i, stage) for i, stage in enumerate(stages))])
    head = Markup('<svg class="graph" viewBox="0 0 {} {}" role="img" aria-label="{}">')
    return head.format(WIDTH, TOP + LINE * len(rows) - 6, text) + body + Markup("</svg>")


def arc(above: int, below: int) -> Markup:
    """From a stage to one that takes it in."""
    y0, y1, x = TOP + LINE * above, TOP + LINE * below, TEXT - 18
    bend = min(x - 2, 14 + 9 * (below - above))
    return Markup('<path d="M{} {} C{} {} {} {} {} {}"/>').format(x, y0, x - bend, y0, x - bend, y1, x, y1)


def line(i: int, stage: Any) -> Markup:
    """A stage: its name and kind, and below them key, size, seconds and state."""
    y, name = TOP + LINE * i, stage["label"].value
    room = WIDTH - TEXT - 4
    squeeze = Markup(' textLength="{}"').format(room) if LETTER * len(name) > room else ""
    return Markup(
        '<circle cx="{x}" cy="{y}" r="6" class="{state}"/>'
        '<text class="name" x="{t}" y="{y}"{squeeze} data-key="{key_of_name}">{name}</text>'
        '<text x="{t}" y="{low}">{words}</text>'
    ).format(
        x=TEXT - 18, y=y, t=TEXT, low=y + 16, state=stage["state"].value.replace(" ", "-"), squeeze=squeeze,
        key_of_name=stage["label"].pointer, name=name, words=Markup(" · ").join(words(stage)),
    )  # fmt: skip


def words(stage: Any) -> list[Markup]:
    from pipeline.report.page import size

    seconds, state = stage["seconds"], stage["state"].value
    count, key = stage["bytes"], stage["key"]
    found = [span(stage["kind"]), span(key, key.value[:8]), span(count, size(count.value))]
    if seconds.value is not None:
        found.append(span(seconds, f"{seconds.value:,.0f} s"))
    return found if state == "done" else [span(stage["kind"]), span(stage["state"])]


def span(fact: Any, text: str | None = None) -> Markup:
    return Markup('<tspan data-key="{}">{}</tspan>').format(fact.pointer, fact.value if text is None else text)
