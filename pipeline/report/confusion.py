"""What an encoder took for what, and the test images behind its commonest mistakes."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data import reader
from pipeline.data.shards import Shards
from pipeline.errors import DataError
from pipeline.evaluation import predictions
from pipeline.lines import legible
from pipeline.report import facts
from pipeline.views.decode import decode_array

PAIRS, IMAGES, CLASSES = 6, 5, 20
"""Pairs of classes, images of each, and classes up to which the whole table is shown."""
SIDE = 96
"""Pixels of a picture of a test image, at most."""


def confusion(label: str, name: str, run: Any) -> facts.Confusion:
    """Of the row ``name`` of a probe (`rows.Run`), with all labels."""
    classes, names = predictions.read(run.folder, name), run.results["classes"]
    table = np.array(run.results["rows"][name]["confusion"])
    called = image_names(run.shards)
    pairs = []
    for i, j in worst(table):
        ids = np.flatnonzero((classes["labels"] == i) & (classes["linear_top1"] == j))[:IMAGES].tolist()
        images = [facts.TestImage(sample, called[sample] if called else "") for sample in ids]
        pairs.append(facts.Pair(names[i], names[j], int(table[i, j]), int(table[i].sum()), images))
    small = len(names) <= CLASSES
    return facts.Confusion(
        label, run.seed, str(run.shards), names if small else [], table.tolist() if small else None, pairs
    )


def worst(table: np.ndarray) -> list[tuple[int, int]]:
    """The most frequent mistakes (true class, class taken), the first of equals first."""
    wrong = np.where(np.eye(len(table), dtype=bool), 0, table)
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    pairs = [divmod(int(at), len(table)) for at in order]
    return [(i, j) for i, j in pairs if wrong[i, j]]


def image_names(folder: Path) -> list[str]:
    """What the test images were called; nothing where the shards are not there any more."""
    try:
        return [legible(name) for name in Shards.open(folder, "test", check=False).names]
    except (DataError, OSError):
        return []


def picture(folder: Path, sample: int) -> bytes | None:
    """A test image as PNG of at most SIDE pixels; None where it cannot be read any more."""
    from PIL import Image

    try:
        shards = Shards.open(folder, "test", check=False)
        channels, turned = shards.manifest["channels"], shards.manifest["exif_orientation"]
        pixels = decode_array(reader.read(shards, sample), channels, exif_orientation=turned)
    except (DataError, OSError, ValueError, reader.BadSample):
        return None
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()
