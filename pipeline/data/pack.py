"""Images -> WebDataset tars with an index and a manifest: shuffled, checked, and the same bytes every time."""

import hashlib
import io
import tarfile
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import files, progress
from pipeline.data import earlier
from pipeline.data.formats import kind
from pipeline.data.layout import plural, sentence, shown, some
from pipeline.data.shards import (
    MANIFEST,
    NAMES,
    QUARANTINE,
    VERSION,
    Shards,
    digest,
    fingerprint,
    index_bytes,
    index_name,
    shard_table,
    table_bytes,
)
from pipeline.data.sources import Item, Listing, open_source
from pipeline.data.splits import halves, shuffled
from pipeline.data.store import open_store
from pipeline.errors import DataError, Stopped
from pipeline.settings.stages import Pack
from pipeline.views.decode import decode
from pipeline.world import World

CHUNK = 256


@dataclass
class Checked:
    """One image as it will be packed: bytes, extension, and what it adds to the statistics."""

    data: bytes
    ext: str
    shape: tuple[int, int]
    grey: bool
    pixels: int
    sums: np.ndarray
    """Of the values in [0, 1] and of their squares, [2, 3]."""


class Statistics:
    """Of the images of one split: how many, of each class, of which sizes, whether all are grey, sums of their
    values."""

    def __init__(self):
        self.labels = Counter[int]()
        self.n, self.pixels, self.sums = 0, 0, np.zeros((2, 3), np.int64)
        self.grey, self.shapes = True, set[tuple[int, int]]()

    def add(self, image: Checked, label: int = -1) -> None:
        self.n += 1
        self.labels[label] += 1
        self.pixels += image.pixels
        self.sums += image.sums
        self.grey &= image.grey
        self.shapes.add(image.shape)


def pack(settings: Pack, seed: int, out: Path, world: World) -> dict[str, Any]:
    """Packs the source into ``out``: shards, their indices, and last the manifest that makes them a set. Returns
    counts. Raises DataError past ``max_bad`` unreadable images, or where none is left to train on; then, and when it
    is interrupted, nothing of what it wrote stays."""
    sweep(out)  # what a killed start left
    try:
        if settings.source.startswith("shards:"):
            return adopt(settings.source.partition(":")[2], out)
        return _pack(settings, seed, out, world)
    except BaseException:
        sweep(out)
        raise


def sweep(out: Path) -> None:
    """Removes shards, whole or begun, and all that describes them."""
    for pattern in ("*.tar", "*.idx", "*.npy", "*.part", f"*{NAMES}", "bad.jsonl", MANIFEST):
        for path in out.glob(pattern):
            path.unlink(missing_ok=True)


def _pack(settings: Pack, seed: int, out: Path, world: World) -> dict[str, Any]:
    source = open_source(settings, out.parent).listing()
    with ThreadPoolExecutor(settings.threads) as pool:
        bad: list[dict[str, str]] = []
        splits = {}
        stats = {}
        for name, items in halves(source, settings.test, seed).items():
            order = shuffled(source, items, seed, name)
            splits[name], stats[name] = write(name, order, settings, out, pool, bad, world)
    if not stats["train"].n:
        raise DataError(f"{settings.source}: no readable image to train on ({len(bad)} unreadable)")
    files.write_json_lines(out / "bad.jsonl", bad)
    manifest = describe(source.classes, splits, stats, len(bad), settings.exif_orientation)
    files.write_json(out / MANIFEST, manifest)
    counts = {f"{name}_images": stats[name].n for name in splits}
    lines = said(source, settings, stats, bad)
    if before := earlier.earlier(out):
        lines += filter(None, [earlier.changes(before, out)])
        earlier.share(before, out)
    return {
        **counts,
        "bad": len(bad),
        "classes": len(source.classes or []),
        "fingerprint": manifest["fingerprint"],
        "left_out": {reason: len(names) for reason, names in source.left_out.items()},
        "said": lines,
    }


def said(source: Listing, settings: Pack, stats: dict[str, Statistics], bad: list[dict[str, str]]) -> list[str]:
    """What was packed, in a line, and in others what was left out of it and what else is to be known."""
    images = {name: stats[name].n for name in ("train", "test")}
    classes = f"of {plural(len(source.classes), 'class')} ({some(source.classes)})" if source.classes else "unlabelled"
    if source.parts:
        came = " and ".join(f"{name} from {where}" for name, where in source.parts.items())
    else:
        came = "no folder was a split" if settings.source.startswith("folder:") else ""
    if "test" not in source.parts and settings.test and images["test"]:
        came += f"{', ' if came else ''}a share of {settings.test:g} held out to test"
    total = plural(sum(images.values()), "image")
    first = f"{total} {classes}: {images['train']:,} to train on, {images['test']:,} to test"
    lines = [first + (f" ({came})" if came else "")]
    left_out = dict(source.left_out)
    if bad:
        left_out["unreadable images, listed in bad.jsonl"] = [f"{b['image']}: {b['reason']}" for b in bad]
    lines += [sentence(left_out)] if left_out else []
    if source.classes:
        found = sum((s.labels for s in stats.values()), Counter())
        lost = [name for k, name in enumerate(source.classes) if not found[k]]
        if lost:
            lines.append(f"{plural(len(lost), 'class')} lost whole, none of its images can be read: {some(lost)}")
    return lines + [shown(note) for note in source.notes]


def adopt(place: str, out: Path) -> dict[str, Any]:
    """Uses shards where they lie: copies what describes them, checks that all are there."""
    source = open_store(place)
    manifest = Shards.open(place).manifest
    base = manifest["base"] or place
    manifest["base"] = base if "://" in base else str((Path(place).expanduser() / base).resolve())
    counts = {}
    for split, entry in manifest["splits"].items():
        shards = Shards.open(place, split)
        counts[f"{split}_images"] = shards.n
        for name in [entry["table"], *(index_name(shards.name(k)) for k in range(len(shards.shards)))]:
            files.write(out / name, source.whole(name))
    for name in (QUARANTINE, *(f"{split}{NAMES}" for split in manifest["splits"])):
        with suppress(FileNotFoundError):
            files.write(out / name, source.whole(name))
    files.write_json(out / MANIFEST, manifest)
    names = manifest["classes"] or []
    of = f"of {plural(len(names), 'class')} ({some(names)})" if names else "unlabelled"
    told = f"{plural(sum(counts.values()), 'image')} {of}, used where they lie: {manifest['base']}"
    facts = {"bad": manifest["bad"], "classes": len(names), "fingerprint": manifest["fingerprint"]}
    return {**counts, **facts, "said": [told]}


def examine(item: Item, short_side: int | None, exif_orientation: bool = True) -> Checked | str:
    """Reads and decodes one image, shrinks it if asked -> what to pack, or what is wrong with it."""
    try:
        data = item.load()
        pixels = decode(data, 3, None, exif_orientation).numpy()
    except MemoryError:
        raise
    except Exception as error:  # whatever a decoder raises on a broken file, the file is what is wrong
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    ext = kind(data, item.name)
    if short_side and min(pixels.shape[1:]) > short_side:
        data, pixels = shrink(pixels, short_side, ext)
    grey = bool((pixels[0] == pixels[1]).all() and (pixels[0] == pixels[2]).all())
    # Sums of whole numbers are exact in any order.
    wide = pixels.reshape(3, -1).astype(np.int64)
    sums = np.stack([wide.sum(1), (wide * wide).sum(1)])
    return Checked(data, ext, (pixels.shape[1], pixels.shape[2]), grey, wide.shape[1], sums)


def shrink(pixels: np.ndarray, side: int, ext: str) -> tuple[bytes, np.ndarray]:
    from PIL import Image

    one = Image.fromarray(pixels.transpose(1, 2, 0))
    scale = side / min(one.size)
    small = one.resize((round(one.width * scale), round(one.height * scale)), Image.Resampling.LANCZOS, reducing_gap=3)
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
    """The shards of one split, in the order of ``items`` less the unreadable ones -> its manifest and statistics."""
    shards: list[tuple] = []
    stats = Statistics()
    names: list[str] = []
    shard: Shard | None = None
    for start in range(0, len(items), CHUNK):
        if world.stopping():
            raise Stopped("asked to stop while packing; the same command packs again")
        chunk = items[start : start + CHUNK]
        results = pool.map(lambda item: examine(item, settings.short_side, settings.exif_orientation), chunk)
        for item, found in zip(chunk, results, strict=True):
            if isinstance(found, str):
                bad.append({"split": split, "image": item.name, "reason": found})
                if len(bad) > settings.max_bad:
                    first = "; ".join(f"{b['image']}: {b['reason']}" for b in bad[:3])
                    raise DataError(
                        f"{settings.source}: more than {settings.max_bad} unreadable images, the first: {first}; "
                        f"mend them or raise max_bad"
                    )
                continue
            if shard is None:
                shard = Shard(out / f"{split}-{len(shards):06d}.tar")
            shard.add(f"{stats.n:09d}", found, item.label)
            stats.add(found, item.label)
            names.append(item.name)
            if len(shard.rows) == settings.shard_images:
                shards.append(shard.close())
                shard = None
        progress.report(out, start + len(chunk), len(items), f"packing {split}")
    if shard is not None:
        shards.append(shard.close())
    files.write_json_lines(out / f"{split}{NAMES}", names)
    return split_table(out, split, shards), stats


def split_table(out: Path, split: str, shards: list[tuple]) -> dict[str, Any]:
    """Writes a split's table of shards -> its entry in the manifest."""
    table = shard_table(shards)
    data = table_bytes(table)
    files.write(out / f"{split}.npy", data)
    sums = {name: int(table[name].sum(dtype=np.int64)) for name in ("images", "bytes")}
    return {"table": f"{split}.npy", "sha256": hashlib.sha256(data).hexdigest(), "shards": len(table)} | sums


class Shard:
    """One tar being written under another name, and the table of what is in it."""

    def __init__(self, path: Path):
        self.path, self.open = path, ExitStack()
        part = self.open.enter_context(files.replacing(path))
        self.tar = self.open.enter_context(tarfile.open(part, mode="w", format=tarfile.USTAR_FORMAT))  # noqa: SIM115
        self.rows: list[tuple] = []
        self.keys: list[str] = []

    def add(self, key: str, image: Checked, label: int) -> None:
        offset = self._member(f"{key}.{image.ext}", image.data)
        self.keys.append(key)
        self.rows.append((offset, len(image.data), zlib.crc32(image.data), label, image.ext.encode()))
        if label >= 0:
            self._member(f"{key}.cls", str(label).encode())

    def _member(self, name: str, data: bytes) -> int:
        info = tarfile.TarInfo(name)  # mtime 0, nobody's
        info.size = len(data)
        self.tar.addfile(info, io.BytesIO(data))
        return self.tar.offset - -(-len(data) // 512) * 512

    def close(self) -> tuple[str, int, int, int, int, bytes]:
        """Ends the tar, writes its index -> its row in the table of shards."""
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
    """The manifest: counts, classes, statistics of the training split, and the fingerprint of it all. ``base``: where
    the tars lie, if not beside it. The deviation of a channel that never varies is 1: pixels are divided by it."""
    shapes = set.union(*(s.shapes for s in stats.values()))
    height, width = shapes.pop() if len(shapes) == 1 else (None, None)
    grey = all(s.grey for s in stats.values())
    train = stats["train"]
    mean = train.sums[0] / (255 * train.pixels)
    std = np.sqrt(np.maximum(train.sums[1] / (255**2 * train.pixels) - mean**2, 0))
    std[std < 1e-6] = 1  # one level in one of a billion pixels is 1e-7: all else is rounding
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
