"""Features of images as a Parquet file: a row an image, in a stable order, written whole or not at all."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.data.index import MANIFEST, Shards
from pipeline.data.loader import centre, images
from pipeline.data.sources import folder as listed
from pipeline.errors import DataError
from pipeline.evaluation.encoders import Encoder
from pipeline.views.decode import decode

ROWS = 256  # images of a row group, and of a forward pass


def embed(encoder: Encoder, where: Path, out: Path, device: torch.device, about: dict[str, str]) -> int:
    """Writes the features of all images below a folder, or of packed shards; returns how many there were.

    Columns: name (the file's path below the folder, or the id), split, label (-1: none) and features, a list of
    float32. ``about``: kept as the file's metadata. Raises DataError for an image that cannot be read.
    """
    import pyarrow as pa
    from pyarrow import parquet

    encoder = encoder.to(device).eval()
    part = out.with_name(f".{out.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    writer: Any = None
    count = 0
    try:
        for names, split, labels, pixels in batches(where, encoder.image.channels, encoder.image.side):
            rows = encoder(pixels.to(device)).cpu().numpy()
            features = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
            columns = {"name": names, "split": [split] * len(names), "label": labels}
            table = pa.table({**columns, "features": features}).replace_schema_metadata(about)
            writer = writer or parquet.ParquetWriter(part, table.schema)
            writer.write_table(table)
            count += len(names)
    finally:
        if writer is not None:
            writer.close()
    part.replace(out)
    return count


def batches(where: Path, channels: int, side: int) -> Iterator[tuple[list[str], str, np.ndarray, Tensor]]:
    """(names, split, labels, uint8 [n, channels, side, side]) of everything there, in order."""
    if (where / MANIFEST).exists():
        for split in ("train", "test"):
            shards = Shards.open(where, split)
            for start in range(0, shards.n, ROWS):
                ids = np.arange(start, min(start + ROWS, shards.n))
                yield [str(i) for i in ids], split, shards.labels[ids], images(shards, ids, side)
        return
    items = listed(where).items
    for start in range(0, len(items), ROWS):
        some = items[start : start + ROWS]
        pixels = torch.stack([one(item.load(), where / item.name, channels, side) for item in some])
        split = {item.split or "" for item in some}
        yield [i.name for i in some], split.pop() if len(split) == 1 else "", np.array([i.label for i in some]), pixels


def one(data: bytes, path: Path, channels: int, side: int) -> Tensor:
    try:
        image = decode(data, channels)
    except ValueError as error:
        raise DataError(f"{path}: {error}; take it out of the folder, or repair it") from error
    return image if tuple(image.shape[1:]) == (side, side) else centre(image, side)
