"""Reads text files that list images with their classes: Tiny-ImageNet's val_annotations.txt, lists of ImageNet's
validation images."""

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

from pipeline.data.tree import File
from pipeline.errors import DataError


def classes(table: Path, files: Sequence[File], names: Sequence[str]) -> dict[File, str]:
    """The class of each file, from a table whose lines begin with a file's name and its class, as a name or a number
    from 0; {} where the file is no such table. Raises DataError where it has only some of the files."""
    known = {key: f for f in files for key in (f.name, f.parts[-1], PurePath(f.parts[-1]).stem)}
    valid, labels = set(names), dict[File, str]()
    try:
        lines = table.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except OSError:
        return {}
    for line in lines:
        for name, label in cells(line):
            file = known.get(name) or known.get(name.rpartition("/")[2])
            if file is not None and label:
                labels[file] = label if label in valid else label.split()[0]
                break
    values = set(labels.values())
    if values and all(word.isdecimal() for word in values) and not values & valid:
        numbers = {int(word) for word in values}
        if min(numbers) > 0 or max(numbers) >= len(names):
            return {}  # numbered from 1, or in another order of classes, as in ImageNet's ground truth file
        labels = {f: names[int(word)] for f, word in labels.items()}
    good = sum(word in valid for word in labels.values())
    if 0 < good < len(files):
        raise DataError(f"{table}: names a class of the training split for {good} of {len(files)} images; mend it")
    return labels if good else {}


def cells(line: str) -> Iterable[tuple[str, str]]:
    """The name and class in a line, split in each possible way: at a tab, a comma, the first space or the last."""
    for mark in ("\t", ","):
        if mark in line:
            name, label = line.split(mark)[:2]
            yield name.strip(), label.strip()
    words = line.split()
    if len(words) > 1:
        yield words[0], words[1]
        yield line.strip().rsplit(None, 1)[0], words[-1]
