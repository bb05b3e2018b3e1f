"""wds:PATTERN: the tars of an existing WebDataset."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pipeline.data import layout, patterns, tar
from pipeline.data.sources.base import Item, Listing, Source, digest
from pipeline.data.store import Folder
from pipeline.errors import DataError
from pipeline.hints import sibling


class WebDataset(Source):
    """Tars whose members are KEY.jpg (or png, ...) and, for labelled images, KEY.cls."""

    def problem(self) -> str:
        if not patterns.tars(self.where):
            near = "" if Path(self.where).is_dir() else sibling(Path(self.where))
            return f"{patterns.unmatched(self.where)}{near}"
        if missing := patterns.missing(self.where):
            return f"{len(missing)} of the files that {self.where} names are missing, the first {missing[0]}"
        return ""

    def fingerprint(self) -> dict[str, str]:
        """A hash of the tars' names, sizes and modification times."""
        paths = ((path, path.stat()) for path in patterns.tars(self.where))
        return {"files": digest((path.name, facts.st_size, facts.st_mtime_ns) for path, facts in paths)}

    def listing(self) -> Listing:
        """The images of the tars. Raises DataError where a tar is damaged."""
        if problem := self.problem():
            raise DataError(f"wds:{self.where}: {problem}")
        paths, numbers = patterns.tars(self.where), Numbers()
        scans = [numbers.add(scan(path)) for path in paths]
        if wrong := [fault for result in scans for fault in result.faults]:
            first = "; ".join(wrong[:3])
            raise DataError(f"wds:{self.where}: {len(wrong)} faults, first {first}; `pipeline check` says all")
        labels, classes, notes = numbers.classes()
        items = [
            Item(f"{path.name}:{s.key}.{s.ext}", None, labels.get(number, -1), load)
            for path, result in zip(paths, scans, strict=True)
            for s, number, load in result.images
        ]
        return Listing(items, classes, notes=notes)


class Scan(NamedTuple):
    """What a tar holds. ``images``: (sample, class number or None, function that reads its bytes) each; ``faults``: a
    line for each; ``extra``: by field, the number of a sample's further images, which are ignored."""

    images: list[tuple[tar.Sample, int | None, Callable[[], bytes]]]
    faults: list[str]
    extra: dict[str, int]


def scan(path: Path) -> Scan:
    """Reads the members of a tar, which may be damaged."""
    store = Folder(path.parent)
    members: list[tar.Member] = []
    faults = []
    try:
        for member in tar.members(lambda offset, size: store.read(path.name, offset, size), path.stat().st_size):
            members.append(member)
    except tar.BrokenTar as error:
        faults.append(f"{path.name}: {error}")
    samples, wrong, extra = tar.samples(members)
    images = []
    for sample in samples:
        at = sample.label
        number = None if at is None else store.read(path.name, at.offset, at.size).strip()
        if number is not None and not (number.removeprefix(b"-").isdigit() and len(number) < 20):
            wrong.append(f"{sample.key}.cls: {number[:20]!r} where the number of a class was expected")
            continue
        image = sample.image
        label = None if number is None else int(number)
        images.append((sample, label, partial(store.read, path.name, image.offset, image.size)))
    return Scan(images, faults + [f"{path.name}: {text}" for text in wrong], extra)


class Numbers:
    """Counts the class numbers in the tars of a set, and the further images of their samples."""

    def __init__(self):
        self.counts, self.extra = Counter[int](), Counter[str]()

    def add(self, result: Scan) -> Scan:
        self.counts.update(number for _, number, _ in result.images if number is not None)
        self.extra.update(result.extra)
        return result

    def classes(self) -> tuple[dict[int | None, int], list[str] | None, list[str]]:
        """The label of every class number, the classes' names, and lines for the user.

        Numbers are labels themselves where at least half of 0 to the largest occur; else they are numbered from 0 in
        rising order, and become the classes' names. -1 means unlabelled, unless another number is negative too or 1
        is the only other."""
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
