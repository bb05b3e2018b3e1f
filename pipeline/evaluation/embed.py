"""Features of images as a Parquet file: a row an image, in a stable order, written whole or not at all."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline import files
from pipeline.data.images import centre
from pipeline.data.layout import Ambiguous, plural, some
from pipeline.data.reader import BadSample, read
from pipeline.data.shards import MANIFEST, Shards
from pipeline.data.sources.folder import ImageFolder
from pipeline.errors import DataError
from pipeline.evaluation.encoders import Encoder
from pipeline.image import Image
from pipeline.lines import legible
from pipeline.views.decode import decode

ROWS = 256  # images of a row group, and of a forward pass


class Row(NamedTuple):
    """An image to embed: name, split ("" without), label (-1 without), class (None without) and its file's bytes."""

    name: str
    split: str
    label: int
    group: str | None
    load: Callable[[], bytes]


def embed(
    encoder: Encoder,
    where: Path | str,
    out: Path | str,
    device: torch.device,
    about: dict[str, str],
    max_bad: int = 100,
    say: Callable[[str], None] = lambda text: None,
) -> int:
    """Writes the features of all images below a folder, or of packed shards; returns how many there were.

    Columns: name (the file's path below the folder, or what it was called when packed), split, label (-1: none), class
    (null: none) and features, a list of float32. Unreadable images are left out, and listed in a file beside ``out``
    that ends in .bad.jsonl. ``about``: kept as the file's metadata; ``say``: gets what was left out. Raises DataError
    past ``max_bad`` unreadable images, or where none can be read.
    """
    from pyarrow import parquet

    encoder, where, out = encoder.to(device).eval(), Path(where), Path(out)
    tally = Tally(where, max_bad)
    with files.replacing(out) as part, ExitStack() as closing:
        writer: Any = None
        images = rows(where, say)
        while chunk := list(islice(images, ROWS)):
            good, pixels = readable(chunk, encoder.image, tally)
            if good:
                batch = table(good, encoder(pixels.to(device)).cpu().numpy(), about)
                writer = writer or closing.enter_context(parquet.ParquetWriter(part, batch.schema))
                writer.write_table(batch)
        if not tally.count:
            raise DataError(f"{where}: none of {len(tally.bad)} images can be read, the first {tally.first()}")
    tally.write(out.with_suffix(".bad.jsonl"), say)
    return tally.count


class Tally:
    """What was read of the images at ``where`` and what was not; more than ``max_bad`` unreadable ones end it."""

    def __init__(self, where: Path, max_bad: int):
        self.where, self.max_bad = where, max_bad
        self.count = 0
        self.bad: list[tuple[Row, str]] = []
        self.groups: set[str | None] = set()

    def read(self, row: Row) -> None:
        self.count += 1
        self.groups.add(row.group)

    def fail(self, row: Row, error: Exception) -> None:
        self.bad.append((row, str(error).splitlines()[0]))
        if len(self.bad) > self.max_bad:
            raise DataError(
                f"{self.where}: more than {plural(self.max_bad, 'unreadable image')}, the first {self.first()}; take "
                f"them out, or raise --max-bad"
            ) from error

    def first(self) -> str:
        row, reason = self.bad[0]
        return f"{legible(row.name)}: {reason}"

    def write(self, path: Path, say: Callable[[str], None]) -> None:
        """Lists the unreadable images in a file, and says how many there are and which classes are lost with them."""
        path.unlink(missing_ok=True)
        if not self.bad:
            return
        files.write_json_lines(path, [{"image": row.name, "reason": reason} for row, reason in self.bad])
        say(f"left out, and listed in {path}: {plural(len(self.bad), 'unreadable image')}, the first {self.first()}")
        if lost := sorted({row.group for row, _ in self.bad if row.group} - self.groups):
            say(f"{plural(len(lost), 'class')} lost whole, none of its images can be read: {some(lost)}")


def table(good: list[Row], features: np.ndarray, about: dict[str, str]) -> Any:
    """An Arrow table of these images and their features [n, D]."""
    import pyarrow as pa

    return pa.table({
        "name": [legible(row.name) for row in good],
        "split": [row.split for row in good],
        "label": np.array([row.label for row in good], np.int64),
        "class": pa.array([row.group and legible(row.group) for row in good], pa.string()),
        "features": pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1]),
    }).replace_schema_metadata(about)  # fmt: skip


def rows(where: Path, say: Callable[[str], None]) -> Iterator[Row]:
    """Everything there, in order."""
    if (where / MANIFEST).exists():
        for split in ("train", "test"):
            shards = Shards.open(where, split)
            for i, (name, label) in enumerate(zip(shards.names, shards.labels.tolist(), strict=True)):
                yield Row(name, split, label, group(shards.classes, label), lambda s=shards, i=i: read(s, i))
        return
    try:
        listing = ImageFolder.at(where).listing()
    except Ambiguous as error:  # every image is wanted, whatever its class
        say(f"{error}; here every image is written without split and class")
        listing = ImageFolder.at(where, splits="none", classes="none").listing()
    for note in listing.lines():
        say(note)
    for item in listing.items:
        yield Row(item.name, item.split or "", item.label, group(listing.classes, item.label), item.load)


def group(classes: list[str] | None, label: int) -> str | None:
    return classes[label] if classes and label >= 0 else None


def readable(chunk: list[Row], image: Image, tally: Tally) -> tuple[list[Row], Tensor]:
    """The rows that can be read, and their pixels, uint8 [n, C, side, side]; the tally has both kinds."""
    good, pixels = [], []
    for row in chunk:
        try:
            picture = decode(row.load(), image.channels, None, image.exif_orientation)
        except (OSError, ValueError, BadSample) as error:
            tally.fail(row, error)
            continue
        tally.read(row)
        good.append(row)
        pixels.append(picture if tuple(picture.shape[1:]) == (image.side, image.side) else centre(picture, image.side))
    return good, torch.stack(pixels) if pixels else torch.empty(0)
