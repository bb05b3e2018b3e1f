"""Packs images into WebDataset tars with an index and a manifest. Every image is decoded to check it; the same images
and settings give the same bytes."""

import hashlib
import io
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import files, progress
from pipeline.data.formats import kind
from pipeline.data.shards import (
    NAMES,
    VERSION,
    digest,
    fingerprint,
    index_bytes,
    shard_table,
    table_bytes,
)
from pipeline.data.sources import Item
from pipeline.errors import DataError, Stopped
from pipeline.settings.stages import Pack
from pipeline.views.decode import decode
from pipeline.world import World

CHUNK = 256


@dataclass
class PackedImage:
    """An image to be packed: its file's bytes and extension, and its share of the split's statistics."""

    data: bytes
    ext: str
    shape: tuple[int, int]
    grey: bool
    pixels: int
    sums: np.ndarray
    """Sums over the pixels of the values in [0, 1], and of their squares, for each channel: float64 [2, 3]."""


class Statistics:
    """The statistics of one split's images: how many there are of each class and size, whether all are grey, and the
    sums for the mean and deviation of each channel."""

    def __init__(self):
        self.labels = Counter[int]()
        self.n, self.pixels, self.sums = 0, 0, np.zeros((2, 3), np.int64)
        self.grey, self.shapes = True, set[tuple[int, int]]()

    def add(self, image: PackedImage, label: int = -1) -> None:
        self.n += 1
        self.labels[label] += 1
        self.pixels += image.pixels
        self.sums += image.sums
        self.grey &= image.grey
        self.shapes.add(image.shape)


def examine(item: Item, short_side: int | None, exif_orientation: bool = True) -> PackedImage | str:
    """Reads and decodes one image, and shrinks it to ``short_side`` pixels if that is given and less than it has.
    Returns the image to pack, or a text that says why it cannot be packed."""
    try:
        data = item.load()
        pixels = decode(data, 3, None, exif_orientation).numpy()
    except MemoryError:
        raise
    except Exception as error:  # decoders raise errors of many types on a broken file
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    ext = kind(data, item.name)
    if short_side and min(pixels.shape[1:]) > short_side:
        data, pixels = shrink(pixels, short_side, ext)
    grey = bool((pixels[0] == pixels[1]).all() and (pixels[0] == pixels[2]).all())
    # Sums of integers are exact in any order.
    wide = pixels.reshape(3, -1).astype(np.int64)
    sums = np.stack([wide.sum(1), (wide * wide).sum(1)])
    return PackedImage(data, ext, (pixels.shape[1], pixels.shape[2]), grey, wide.shape[1], sums)


def shrink(pixels: np.ndarray, side: int, ext: str) -> tuple[bytes, np.ndarray]:
    """Shrinks an image, uint8 [3, H, W], to a short side of ``side`` pixels, and encodes it. Returns the file's bytes
    and the pixels that they decode to."""
    from PIL import Image

    image = Image.fromarray(pixels.transpose(1, 2, 0))
    scale = side / min(image.size)
    size = round(image.width * scale), round(image.height * scale)
    small = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3)
    file = io.BytesIO()
    if ext == "jpg":
        small.save(file, "JPEG", quality=95)
    else:
        small.save(file, "PNG")
    data = file.getvalue()
    return data, decode(data, 3).numpy()


def write(
    split: str, items: list[Item], settings: Pack, out: Path, pool: ThreadPoolExecutor, bad: list, world: World
) -> tuple[dict[str, Any], Statistics]:
    """Writes the shards of one split, in the order of ``items`` without unreadable ones. Returns the split's entry in
    the manifest, and its statistics. Raises as `readable` does."""
    shards: list[tuple] = []
    names: list[str] = []
    stats = Statistics()
    shard: ShardWriter | None = None
    for item, image in readable(split, items, settings, out, pool, bad, world):
        shard = shard or ShardWriter(out / f"{split}-{len(shards):06d}.tar")
        shard.add(f"{stats.n:09d}", image, item.label)
        stats.add(image, item.label)
        names.append(item.name)
        if len(shard.rows) == settings.shard_images:
            shards.append(shard.close())
            shard = None
    if shard is not None:
        shards.append(shard.close())
    files.write_json_lines(out / f"{split}{NAMES}", names)
    return split_table(out, split, shards), stats


def readable(
    split: str, items: list[Item], settings: Pack, out: Path, pool: ThreadPoolExecutor, bad: list, world: World
) -> Iterator[tuple[Item, PackedImage]]:
    """The images that can be read, in their order; the others are appended to ``bad``. Raises DataError where these
    are more than ``max_bad``, Stopped where the process was asked to stop."""
    for start in range(0, len(items), CHUNK):
        if world.stopping():
            raise Stopped("asked to stop while packing; the same command packs again")
        chunk = items[start : start + CHUNK]
        results = pool.map(lambda item: examine(item, settings.short_side, settings.exif_orientation), chunk)
        for item, image in zip(chunk, results, strict=True):
            if not isinstance(image, str):
                yield item, image
                continue
            bad.append({"split": split, "image": item.name, "reason": image})
            if len(bad) > settings.max_bad:
                first = "; ".join(f"{b['image']}: {b['reason']}" for b in bad[:3])
                raise DataError(
                    f"{settings.source}: more than {settings.max_bad} unreadable images, the first: {first}; mend "
                    f"them or raise max_bad"
                )
        progress.report(out, start + len(chunk), len(items), "images", f"packing {split}")


def split_table(out: Path, split: str, shards: list[tuple]) -> dict[str, Any]:
    """Writes a split's table of shards. Returns the split's entry in the manifest."""
    table = shard_table(shards)
    data = table_bytes(table)
    files.write(out / f"{split}.npy", data)
    sums = {name: int(table[name].sum(dtype=np.int64)) for name in ("images", "bytes")}
    return {"table": f"{split}.npy", "sha256": hashlib.sha256(data).hexdigest(), "shards": len(table)} | sums


class ShardWriter:
    """Writes one tar, under a temporary name until it is closed, and collects the rows of its index."""

    def __init__(self, path: Path):
        self.path, self.open = path, ExitStack()
        part = self.open.enter_context(files.replacing(path))
        self.tar = self.open.enter_context(tarfile.open(part, mode="w", format=tarfile.USTAR_FORMAT))  # noqa: SIM115
        self.rows: list[tuple] = []
        self.keys: list[str] = []

    def add(self, key: str, image: PackedImage, label: int) -> None:
        offset = self._member(f"{key}.{image.ext}", image.data)
        self.keys.append(key)
        self.rows.append((offset, len(image.data), zlib.crc32(image.data), label, image.ext.encode()))
        if label >= 0:
            self._member(f"{key}.cls", str(label).encode())

    def _member(self, name: str, data: bytes) -> int:
        info = tarfile.TarInfo(name)  # mtime 0 and no owner: the same bytes every time
        info.size = len(data)
        self.tar.addfile(info, io.BytesIO(data))
        return self.tar.offset - -(-len(data) // 512) * 512

    def close(self) -> tuple[str, int, int, int, int, bytes]:
        """Ends the tar and writes its index. Returns its row in the table of shards."""
        index = index_bytes(self.rows, self.keys)
        files.write(self.path.with_suffix(".idx"), index)
        self.open.close()
        size, sha = self.path.stat().st_size, bytes.fromhex(digest(self.path))
        return self.path.name, len(self.rows), size, len(index), zlib.crc32(index), sha


def describe(
    classes: list[str] | None,
    splits: dict,
    stats: dict[str, Statistics],
    bad: int,
    exif_orientation: bool = True,
    base: str | None = None,
) -> dict[str, Any]:
    """The manifest: counts, classes, statistics of the training split, and the fingerprint of them. ``base``: the
    folder of the tars, if not the manifest's own. The deviation of a constant channel is set to 1, since pixels are
    divided by it."""
    shapes = set.union(*(s.shapes for s in stats.values()))
    height, width = shapes.pop() if len(shapes) == 1 else (None, None)
    grey = all(s.grey for s in stats.values())
    train = stats["train"]
    mean = train.sums[0] / (255 * train.pixels)
    std = np.sqrt(np.maximum(train.sums[1] / (255**2 * train.pixels) - mean**2, 0))
    std[std < 1e-6] = 1  # one grey level in one of a billion pixels gives 1e-7; what is less is rounding
    body = {
        "version": VERSION,
        "classes": classes,
        "channels": 1 if grey else 3,
        "height": height,
        "width": width,
        "mean": mean[: 1 if grey else 3].tolist(),
        "std": std[: 1 if grey else 3].tolist(),
        "exif_orientation": exif_orientation,
        "splits": splits,
        "bad": bad,
        "base": base,
    }
    return body | {"fingerprint": fingerprint(body)}
