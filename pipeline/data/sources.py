"""Where images come from: a list of items, each with its split, its class and a way to its bytes."""

import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from pipeline.data import layout, patterns, tar
from pipeline.data.store import Folder
from pipeline.errors import DataError
from pipeline.settings.data import Splits
from pipeline.settings.stages import Pack


@dataclass(frozen=True)
class Item:
    """One image to pack. ``name``: what the user knows it by; ``split``: train, test, or none where the source has no
    splits; ``label``: its class's index, -1 without; ``load``: its file's bytes."""

    name: str
    split: str | None
    label: int
    load: Callable[[], bytes]


@dataclass(frozen=True)
class Source:
    """``notes``: what is to be said of it. ``parts``: where each split comes from, if there are any. ``left_out``:
    names by reason. ``fixed``: no image will ever come or go."""

    items: list[Item]
    classes: list[str] | None
    notes: list[str] = field(default_factory=list)
    parts: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    fixed: bool = False

    def told(self) -> list[str]:
        """What was left out and what else is to be known, a line each."""
        return [*filter(None, [layout.sentence(self.left_out)]), *map(layout.shown, self.notes)]


def open_source(settings: Pack, root: Path | None = None) -> Source:
    """digits · folder:PATH · torchvision:NAME · wds:PATTERN -> its items in a stable order. ``root``: where runs are
    kept, which are no images to pack. Raises DataError."""
    source = settings.source
    kind, _, rest = source.partition(":")
    if source == "digits":
        return digits()
    if kind == "folder":
        return folder(Path(rest).expanduser(), root, settings.splits, settings.classes)
    if kind == "torchvision":
        return torchvision(rest, settings.root)
    if kind == "wds":
        return webdataset(rest)
    raise DataError(f"source {source!r}: expected digits, folder:PATH, torchvision:NAME or wds:PATTERN")


def png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W] or [H, W, 3] -> the bytes of a PNG."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def digits() -> Source:
    """The 1,797 handwritten digits inside scikit-learn, 8x8, sixteen levels of grey spread over 0 to 255."""
    home = find_spec("sklearn").submodule_search_locations  # type: ignore[union-attr]  # importing it takes seconds
    rows = np.loadtxt(Path(home[0], "datasets/data/digits.csv.gz"), delimiter=",")  # type: ignore[index]
    pixels = np.round(rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    items = [
        Item(f"digit {i}", None, int(label), lambda one=one: png(one))
        for i, (one, label) in enumerate(zip(pixels, rows[:, -1], strict=True))
    ]
    return Source(items, [str(i) for i in range(10)], fixed=True)


def folder(
    path: Path,
    root: Path | None = None,
    splits: Literal["auto", "none"] | Splits = "auto",
    classes: Literal["auto", "folders", "none"] = "auto",
) -> Source:
    """The images of a folder as `layout.read` understands it."""
    found = layout.read(path, root, splits, classes)
    items = [Item(e.file.name, e.split, e.label, partial(whole, e.file.path)) for e in found.entries]
    return Source(items, found.classes, found.notes, found.parts, found.left_out)


def whole(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def torchvision(name: str, root: str | None) -> Source:
    """A classification set of torchvision's by its class name, from ``root`` or, where there is a network, fetched."""
    from torchvision import datasets

    make = getattr(datasets, name, None)
    if make is None:
        raise DataError(f"torchvision:{name}: torchvision.datasets has no {name}")
    items: list[Item] = []
    classes: list[str] | None = None
    for split, train in (("train", True), ("test", False)):
        try:
            data = make(root or "data", train=train, download=True)
        except (TypeError, RuntimeError, OSError) as error:
            raise DataError(f"torchvision:{name}: {str(error).splitlines()[0]} (root: {root or 'data'})") from error
        classes = [str(c) for c in getattr(data, "classes", [])] or None
        for i in range(len(data)):
            items.append(
                Item(f"{split} {i}", split, int(data.targets[i]), lambda d=data, i=i: png(np.asarray(d[i][0])))
            )
    return Source(items, classes, fixed=True)


def webdataset(pattern: str) -> Source:
    """Tars that others wrote: members KEY.jpg (png, ...) with KEY.cls where labelled. Raises DataError where one of
    them is not whole, listing what is wrong."""
    paths = patterns.tars(pattern)
    if not paths:
        raise DataError(f"wds:{pattern}: {patterns.unmatched(pattern)}")
    if absent := patterns.missing(pattern):
        raise DataError(f"wds:{pattern}: {len(absent)} of the files are missing, the first {absent[0]}")
    numbers = Numbers()
    scans = [numbers.add(scan(path)) for path in paths]
    if wrong := [fault for one in scans for fault in one.faults]:
        raise DataError(f"wds:{pattern}: {len(wrong)} faults, first {'; '.join(wrong[:3])}; `pipeline check` says all")
    labels, classes, notes = numbers.classes()
    items = [
        Item(f"{path.name}:{s.key}.{s.ext}", None, labels.get(said, -1), load)
        for path, one in zip(paths, scans, strict=True)
        for s, said, load in one.found
    ]
    return Source(items, classes, notes=notes)


class Scan(NamedTuple):
    """A tar: its images, each with the number of its class (none: nothing names it) and a way to its bytes; what is
    wrong with the tar; and how many images of further fields were passed over, by field."""

    found: list[tuple[tar.Sample, int | None, Callable[[], bytes]]]
    faults: list[str]
    extra: dict[str, int]


def scan(path: Path) -> Scan:
    """What a tar holds."""
    store = Folder(path.parent)
    members: list[tar.Member] = []
    faults = []
    try:
        for member in tar.members(lambda offset, size: store.read(path.name, offset, size), path.stat().st_size):
            members.append(member)
    except tar.BrokenTar as error:
        faults.append(f"{path.name}: {error}")
    samples, wrong, extra = tar.samples(members)
    found = []
    for sample in samples:
        said = None if sample.label is None else store.read(path.name, sample.label.offset, sample.label.size).strip()
        if said is not None and not (said.removeprefix(b"-").isdigit() and len(said) < 20):
            wrong.append(f"{sample.key}.cls: {said[:20]!r} where the number of a class was expected")
            continue
        image = sample.image
        label = None if said is None else int(said)
        found.append((sample, label, partial(store.read, path.name, image.offset, image.size)))
    return Scan(found, faults + [f"{path.name}: {text}" for text in wrong], extra)


class Numbers:
    """What class numbers the tars of a set name, and which further images they hold."""

    def __init__(self):
        self.counts, self.extra = Counter[int](), Counter[str]()

    def add(self, one: Scan) -> Scan:
        self.counts.update(said for _, said, _ in one.found if said is not None)
        self.extra.update(one.extra)
        return one

    def classes(self) -> tuple[dict[int | None, int], list[str] | None, list[str]]:
        """The label of every number, the classes' names, and what is to be said of it.

        Numbers are labels where they fill at least half of 0 to the highest; else those that come up are counted
        through, and name their classes. -1 means none, unless another is negative too, or 1 is the only other."""
        notes = [f"passed over beside a sample's own: {layout.plural(n, 'image')} {f}" for f, n in self.extra.items()]
        numbers = sorted(self.counts)
        others = [n for n in numbers if n != -1]
        if len(others) < len(numbers) and min(others, default=0) >= 0 and others != [1]:
            notes.append(f"without a class, which they call -1: {layout.plural(self.counts[-1], 'image')}")
            numbers = others
        if numbers and numbers[0] >= 0 and numbers[-1] < 2 * len(numbers):
            numbers = list(range(numbers[-1] + 1))
        elif numbers:
            few = ", ".join(map(str, numbers[:3])) + (", ..." if len(numbers) > 3 else "")
            notes.append(f"the classes {few} have labels 0 to {len(numbers) - 1}, and their numbers as names")
        return {n: label for label, n in enumerate(numbers)}, [str(n) for n in numbers] or None, notes
