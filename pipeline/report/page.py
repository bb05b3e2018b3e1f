"""Facts -> the page: every number and text of it is a `Fact`, which names its place in results.json."""

import base64
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.report import charts, confusion, facts, graph

SHEETS = 3_200_000
"""Bytes of the page that its sheets may take: a page is to be sent by mail."""
WIDEST = 1200
"""Pixels of a sheet across, at most."""


@dataclass(frozen=True)
class Fact:
    """A part of results.json and its JSON Pointer (RFC 6901), which stands in the page beside what is shown of it."""

    value: Any
    pointer: str = ""

    def __getitem__(self, key: Any) -> "Fact":
        part = str(key).replace("~", "~0").replace("/", "~1")
        return Fact(self.value[key], f"{self.pointer}/{part}")

    def __iter__(self) -> Iterator["Fact"]:
        return (self[k] for k in (self.value if isinstance(self.value, dict) else range(len(self.value))))

    def __len__(self) -> int:
        return len(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __html__(self) -> str:
        return self.shown(str(self.value))

    @property
    def count(self) -> Markup:
        """How many it holds."""
        return Markup('<data value="{0}" data-count="{1}">{0}</data>').format(len(self.value), self.pointer)

    @property
    def part(self) -> Markup:
        """The last part of its pointer, the name by which it is kept, as an element that says so."""
        text = self.pointer.split("/")[-1].replace("~1", "/").replace("~0", "~")
        return Markup('<span data-part="{}">{}</span>').format(self.pointer, text)

    def shown(self, text: str) -> Markup:
        """The text as an element that names its place; a number says itself in full, too."""
        if isinstance(self.value, int | float):
            whole = Markup('<data value="{}" data-key="{}">{}</data>')
            return whole.format(repr(self.value), self.pointer, text)
        return Markup('<span data-key="{}">{}</span>').format(self.pointer, text)


def shown(form: Callable[[Any], str]) -> Callable[[Fact], Markup | str]:
    """A filter of the template: a number in this form, a dash where there is none."""
    return lambda fact: "–" if fact.value is None else fact.shown(form(fact.value))


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def points(difference: float) -> str:
    """A difference of shares in points, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def size(count: int) -> str:
    """Bytes as "4.2 MB"."""
    exponent = min(3, int(math.log10(max(1, count))) // 3)
    return f"{count / 1000**exponent:.3g} {('bytes', 'kB', 'MB', 'GB')[exponent]}"


def number(value: float) -> str:
    """Four digits of any number; whole ones as they are."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def words(command: str) -> Markup:
    """A command, none of whose words is broken at a hyphen where a line has room for it."""
    return Markup(" ").join(Markup('<span class="word">{}</span>').format(word) for word in command.split(" "))


FORMS = {"percent": percent, "points": points, "size": size, "number": number, "words": words}


def html(results: facts.Results) -> str:
    """The page, which needs no other file."""
    env = Environment(
        loader=PackageLoader("pipeline", "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    env.filters |= {name: shown(form) for name, form in FORMS.items()}
    style = (Path(__file__).parent / "page.css").read_text()
    template = env.get_template("page.html")
    return template.render(r=Fact(results.json()), style=Markup(style), drawn=Drawn(results))


@dataclass(frozen=True)
class Drawn:
    """The pictures of a page, as elements of it."""

    results: facts.Results

    def along(self, probe: int) -> list[Markup]:
        along = self.results.probes[probe].along
        return [drawing(charts.lines(c, True), f"Test accuracy along training, {c.title}", c) for c in along]

    @cached_property
    def losses(self) -> list[Markup]:
        return [drawing(charts.lines(c, False), f"{c.title}, {c.tag}", c) for c in self.results.losses]

    def key(self, k: int, count: int) -> Markup:
        return charts.key(k, count)

    def bar(self, probe: int, k: int) -> Markup:
        """The interval of a difference, on one scale with the others of its metric."""
        every = self.results.probes[probe].differences
        near = [d for d in every if d.metric == every[k].metric]
        least, most = min(0.0, *(d.low for d in near)), max(0.0, *(d.high for d in near))
        return Markup(charts.bar(every[k], least, most))

    @cached_property
    def graph(self) -> Markup:
        return graph.svg(Fact(self.results.json())["stages"])

    @cached_property
    def sheets(self) -> list[Markup]:
        room = SHEETS // max(1, len(self.results.sheets))
        found = []
        for sheet in self.results.sheets:
            data, small = shrunk(Path(sheet.folder) / sheet.file, room)
            style = "pixels" if small else ""
            found.append(picture(data, f"{sheet.label}: {sheet.caption}", style))
        return found

    def test_image(self, probe: int, pair: int, image: int) -> Markup:
        mistakes = self.results.probes[probe].confusion
        assert mistakes is not None
        classes = mistakes.pairs[pair]
        found = classes.images[image]
        data = confusion.picture(Path(mistakes.shards), found.id)
        text = f"Test image {found.id} {found.name}: {classes.true}, taken for {classes.taken}"
        return picture(data, text, "thumb pixels") if data else Markup("<i>{}</i>").format(text)


def drawing(svg: Markup, text: str, chart: facts.Chart) -> Markup:
    """A chart, and for those who do not see it what it is and where its curves begin and end."""
    lines = (f"{c.label} from {c.values[0]:.4g} to {c.final:.4g} at step {c.steps[-1]:,}" for c in chart.curves)
    head = Markup('<div role="img" aria-label="{}">{}</div>')
    return head.format(f"{text}: {'; '.join(lines)}", svg)


def picture(data: bytes, text: str, style: str) -> Markup:
    """An image inside of the page."""
    return Markup('<img class="{}" alt="{}" src="data:image/png;base64,{}">').format(
        style, text, base64.b64encode(data).decode()
    )


def shrunk(path: Path, room: int) -> tuple[bytes, bool]:
    """A sheet as PNG of at most ``room`` bytes once it is in the page, and whether it is so small that its pixels are
    to be seen: as it is if that will do, else in 256 colours, else smaller."""
    from PIL import Image

    data, image = path.read_bytes(), Image.open(path)
    small, room = image.width < WIDEST // 3, room * 3 // 4
    image = image.convert("RGB")
    if image.width > WIDEST:
        image = image.resize((WIDEST, round(image.height * WIDEST / image.width)), Image.Resampling.LANCZOS)
        data = png(image)
    while len(data) > room:
        data = png(image.quantize(256))
        if len(data) > room:
            scale = min(0.9, (room / len(data)) ** 0.5)
            sizes = max(1, round(image.width * scale)), max(1, round(image.height * scale))
            image = image.resize(sizes, Image.Resampling.LANCZOS)
    return data, small


def png(image: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()
