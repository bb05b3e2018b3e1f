"""Pictures as arrays: images in a grid, with captions, names and marks. The same input gives the same bytes."""

import math
import string
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.nn.functional import avg_pool2d

SIDE = 64  # pixels, about, of one image of a sheet
WIDTH = 480  # pixels at least of a sheet with a caption, so that the caption has room
NAME, CAPTION = 12, 15  # pixels of a letter, beside images and above them
LINE = 1.35  # of a line, in letters
SIGNS = "✓✗…±·×√°"  # letters of captions that the usual font has
BORDER, BADGE = 3, 18  # pixels of a frame's line, and on a side of its sign
RIGHT, WRONG, MARKED = "#0072b2", "#d55e00", "#7a5195"
"""Colours of frames. RIGHT and WRONG are told apart by the colour-blind too (Okabe & Ito 2008); a sign stands beside
them all the same."""


class Picture(NamedTuple):
    """Pixels, uint8 [H, W, 3], and what they show, in a sentence or two."""

    pixels: np.ndarray
    caption: str

    def of(self, source: str) -> "Picture":
        """The same one, whose caption also says of what it is."""
        return Picture(self.pixels, f"{self.caption} {source}")


class Frame(NamedTuple):
    """A border around the cells from ``first`` to ``last``, (row, column) each, with a sign in its corner."""

    first: tuple[int, int]
    last: tuple[int, int]
    colour: str
    sign: str = ""


class Text(NamedTuple):
    """Words on a page. ``x``: of their left end, middle or right end as ``align`` says; ``y``: of their middle, in
    pixels from the upper left corner."""

    x: float
    y: float
    words: str
    size: int = NAME
    align: str = "center"
    colour: str = "black"


def images(batch: Tensor, side: int = SIDE) -> list[np.ndarray]:
    """Float images in [0, 1], [N, C, S, S] with C of 1 or 3 -> N of uint8 [s, s, 3], s about ``side``.

    Small images are enlarged by a whole factor without smoothing, so that their pixels can be seen; of large ones,
    squares of pixels are averaged.
    """
    batch = batch.detach().float().cpu().clamp(0, 1)
    if (shrink := round(batch.shape[-1] / side)) > 1:
        batch = avg_pool2d(batch, shrink)
    zoom = max(1, side // batch.shape[-1])
    batch = batch.expand(-1, 3, -1, -1).repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    return list((batch * 255).round().byte().permute(0, 2, 3, 1).numpy())


def lines(cells: Sequence[Any], columns: int) -> list[list[Any]]:
    """Cells in reading order, as lines of so many."""
    return [list(cells[at : at + columns]) for at in range(0, len(cells), columns)]


def tile(batch: Tensor, columns: int, gap: int = 2) -> np.ndarray:
    """Float images in [0, 1], [N, C, S, S], in reading order -> one sheet, uint8 [height, width, 3]."""
    return sheet(lines(images(batch), columns), gap=gap)


def sheet(
    cells: Sequence[Sequence[np.ndarray]],
    names: Sequence[Sequence[str]] = (),
    heads: Sequence[str] = (),
    rows: Sequence[str] = (),
    frames: Sequence[Frame] = (),
    gap: int = 2,
) -> np.ndarray:
    """Lines of cells, uint8 [h, w, 3] of any sizes -> one sheet, uint8 [H, W, 3].

    ``names``: words under each cell, in the same lines, "" for none; ``heads``: above the columns; ``rows``: left of
    the lines. Words that are too long for their cell end in "…".
    """
    gap = max(gap, 2 * BORDER + 4) if frames else gap
    grid = Grid.around(cells, names, heads, rows, gap, BORDER + 2 if frames else 0)
    texts = grid.titles(heads, rows)
    page = np.full((*grid.size, 3), 255, np.uint8)
    for r, c in ((r, c) for r, row in enumerate(cells) for c in range(len(row))):
        height, width, _ = cells[r][c].shape
        x, y = grid.xs[c] + (grid.widths[c] - width) // 2, grid.ys[r] + (grid.heights[r] - height) // 2
        page[y : y + height, x : x + width] = cells[r][c]
    texts += [grid.under(r, c, word) for r, words in enumerate(names) for c, word in enumerate(words) if word]
    for frame in frames:
        texts += draw_frame(page, *grid.box(frame), frame)
    return write(page, texts)


class Grid(NamedTuple):
    """Where the cells of a sheet lie, in pixels: the left ends of its columns and the upper ends of its lines, how
    wide and high they are, the ``gap`` between them, the ``margin`` around them, and the ``size`` of the page."""

    xs: list[int]
    ys: list[int]
    widths: list[int]
    heights: list[int]
    gap: int
    margin: int
    size: tuple[int, int]

    @classmethod
    def around(cls, cells: Any, names: Any, heads: Any, rows: Any, gap: int, margin: int) -> "Grid":
        """The grid that has room for what `sheet` is given."""
        line = math.ceil(LINE * NAME)
        left = max([math.ceil(width_of(row, NAME)) + 8 for row in rows], default=0) + margin
        top = (line + 2 if heads else 0) + margin
        columns = range(max(len(row) for row in cells))
        widths = [max(row[c].shape[1] for row in cells if c < len(row)) for c in columns]
        heights = [max(cell.shape[0] for cell in row) for row in cells]
        below = [line if any(words) else 0 for words in names] or [0] * len(cells)
        xs = list(accumulate((w + gap for w in widths), initial=left))
        ys = list(accumulate((h + b + gap for h, b in zip(heights, below, strict=True)), initial=top))
        return cls(xs, ys, widths, heights, gap, margin, (ys[-1] - gap + margin, xs[-1] - gap + margin))

    def titles(self, heads: Sequence[str], rows: Sequence[str]) -> list[Text]:
        """The words above the columns and left of the lines."""
        y, x = self.ys[0] - self.margin - LINE * NAME / 2, self.xs[0] - self.margin - 6
        above = [Text(self.middle(c), y, self.fit(c, head)) for c, head in enumerate(heads)]
        return above + [Text(x, self.ys[r] + self.heights[r] / 2, row, align="right") for r, row in enumerate(rows)]

    def under(self, r: int, c: int, name: str) -> Text:
        """The words under a cell."""
        y = self.ys[r] + self.heights[r] + LINE * NAME / 2 + (BORDER if self.margin else 0)
        return Text(self.middle(c), y, self.fit(c, name))

    def middle(self, c: int) -> float:
        return self.xs[c] + self.widths[c] / 2

    def fit(self, c: int, words: str) -> str:
        return shorten(words, self.widths[c] + self.gap - 2)

    def box(self, frame: Frame) -> tuple[int, int, int, int]:
        """Left, upper, right and lower end of a frame's cells."""
        (r, c), (bottom, right) = frame.first, frame.last
        return self.xs[c], self.ys[r], self.xs[right] + self.widths[right], self.ys[bottom] + self.heights[bottom]


def draw_frame(page: np.ndarray, x: int, y: int, right: int, bottom: int, frame: Frame) -> list[Text]:
    """Draws a frame around the pixels from (x, y) to (right, bottom), and a badge; returns the sign for it."""
    from PIL import ImageColor

    colour = ImageColor.getrgb(frame.colour)
    page[y - BORDER : y, x - BORDER : right + BORDER] = colour
    page[bottom : bottom + BORDER, x - BORDER : right + BORDER] = colour
    page[y - BORDER : bottom + BORDER, x - BORDER : x] = colour
    page[y - BORDER : bottom + BORDER, right : right + BORDER] = colour
    if not frame.sign:
        return []
    page[y : y + BADGE, x : x + BADGE] = colour
    return [Text(x + BADGE / 2 - 1, y + BADGE / 2 - 1, frame.sign, NAME + 2, colour="white")]


def colours(count: int) -> np.ndarray:
    """So many colours, float [count, 3] in [0, 1]: well apart up to 20, then hues by the golden ratio."""
    from matplotlib import colormaps
    from matplotlib.colors import hsv_to_rgb

    if count <= 20:
        return colormaps["tab10" if count <= 10 else "tab20"](np.arange(count))[:, :3]
    hues = np.arange(count) * 0.618034 % 1
    return hsv_to_rgb(np.stack([hues, np.full(count, 0.75), 0.6 + 0.3 * (np.arange(count) % 2)], 1))


# --------------------------------------------------------------------------------------------------------------- words
def captioned(picture: Picture, step: int) -> np.ndarray:
    """The picture under its caption and the training step that it is of -> uint8 [H, W, 3]."""
    height, width, _ = picture.pixels.shape
    page_width, line = max(WIDTH, width + 16), math.ceil(LINE * CAPTION)
    words = wrap(f"{picture.caption} Step {step:,}.", page_width - 16)
    head = len(words) * line + 14
    page = np.full((head + height + 8, page_width, 3), 255, np.uint8)
    x = (page_width - width) // 2
    page[head : head + height, x : x + width] = picture.pixels
    return write(page, [Text(8, 7 + (i + 0.5) * line, text, CAPTION, "left") for i, text in enumerate(words)])


def wrap(text: str, width: float) -> list[str]:
    """Text in lines of at most ``width`` pixels of CAPTION; a word that is longer is cut."""
    found = [""]
    for word in text.split():
        longer = f"{found[-1]} {word}".strip()
        if width_of(longer, CAPTION) <= width:
            found[-1] = longer
        else:
            found.append(shorten(word, width, CAPTION))
    return [line for line in found if line]


def shorten(text: str, width: float, size: int = NAME) -> str:
    """The text, or as much of it as ``width`` pixels hold with "…" behind it."""
    if width_of(text, size) <= width:
        return text
    shorter = [f"{text[:kept].rstrip()}…" for kept in range(len(text))]
    return shorter[max(0, bisect_right(shorter, width, key=lambda words: width_of(words, size)) - 1)]


def lettering(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Families of this machine's fonts that together have the letters of names, and the names with "U+732B" for a
    letter that none of them has."""
    from matplotlib import font_manager, rcParams
    from matplotlib.ft2font import FT2Font

    families = [font_manager.FontProperties(family=rcParams["font.family"]).get_name()]
    usual = FT2Font(font_manager.findfont(families[0])).get_charmap()
    missing = {ord(letter) for letter in "".join(names)} - usual.keys()
    for font in font_manager.fontManager.ttflist if missing else ():
        if not font.name.startswith("Last Resort") and (had := missing & FT2Font(font.fname).get_charmap().keys()):
            families.append(font.name)
            missing -= had
    return ["".join(f"U+{ord(c):04X}" if ord(c) in missing else c for c in name) for name in names], families


@lru_cache(maxsize=4096)
def face(letter: str) -> tuple[str, str]:
    """A letter as it is written, and the file of the font that has it. Letters of most sheets are found without
    matplotlib, which takes a second to load."""
    if letter in string.printable or letter in SIGNS:
        origin = find_spec("matplotlib").origin  # type: ignore[union-attr]
        return letter, str(Path(origin or "").parent / "mpl-data/fonts/ttf/DejaVuSans.ttf")
    from matplotlib import font_manager

    (shown,), families = lettering([letter])
    return shown, font_manager.findfont(families[-1])


@lru_cache(maxsize=64)
def font(file: str, size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC)


def runs(text: str, size: int) -> list[tuple[str, Any, float]]:
    """A line of text as pieces of one font: the letters, the font, and the pixels that they take."""
    pieces = []
    for file, letters in groupby(map(face, text), key=lambda pair: pair[1]):
        words = "".join(letter for letter, _ in letters)
        pieces.append((words, font(file, size), font(file, size).getlength(words)))
    return pieces


def width_of(text: str, size: int) -> float:
    """Pixels that a line of text of this size takes."""
    return sum(width for _, _, width in runs(text, size))


def write(page: np.ndarray, texts: Sequence[Text]) -> np.ndarray:
    """The page with the texts on it; its other pixels stay as they are."""
    from PIL import Image, ImageDraw

    picture = Image.fromarray(page)
    pen = ImageDraw.Draw(picture)
    for text in texts:
        pieces = runs(text.words, text.size)
        x = text.x - {"left": 0, "center": 0.5, "right": 1}[text.align] * sum(width for _, _, width in pieces)
        for words, letters, width in pieces:
            pen.text((round(x), round(text.y + 0.36 * text.size)), words, text.colour, letters, anchor="ls")
            x += width
    return np.asarray(picture).copy()


def canvas(width: float, height: float) -> tuple[Any, Any]:
    """A figure of so many inches and the page it is drawn on."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    return figure, FigureCanvasAgg(figure)


def drawn(page: Any) -> np.ndarray:
    """A finished page -> uint8 [H, W, 3]."""
    page.draw()
    return np.asarray(page.buffer_rgba())[..., :3].copy()
