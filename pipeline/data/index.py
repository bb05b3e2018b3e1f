"""Indexes the tars of an existing WebDataset, so that they are read like packed shards. They are not copied or
changed."""

import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.data.shards import MANIFEST, digest, index_bytes, index_name
from pipeline.data.sources import Item
from pipeline.data.sources.webdataset import Numbers, scan
from pipeline.data.tar import Sample
from pipeline.data.write import CHUNK, Statistics, describe, examine, split_table
from pipeline.errors import DataError
from pipeline.files import sync, write, write_json, write_json_lines


def index(
    splits: dict[str, list[Path]],
    out: Path,
    threads: int = 1,
    max_bad: int = 100,
    exif_orientation: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Writes the manifest, tables and indices of the tars of each split into ``out`` -> the manifest. Images that
    cannot be decoded are left out and listed in bad.jsonl. Raises DataError where a tar is damaged, where more than
    ``max_bad`` images are unreadable, or where no image is left to train on."""
    paths = [path for tars in splits.values() for path in tars]
    base = Path(os.path.commonpath([path.resolve().parent for path in paths]))
    names = [str(path.resolve().relative_to(base)) for path in paths]
    if len(set(names)) < len(names):
        raise DataError("a tar is named twice; expected each in one split, once")
    entries, stats, bad = {}, {}, []
    wrong, numbers = [], Numbers()
    for path in paths:
        wrong += numbers.add(scan(path)).faults
    if wrong:
        for fault in wrong:
            say(fault)
        raise DataError(f"{len(wrong)} faults in {len(paths)} tars, the first {wrong[0]}; mend or remove them")
    labels, classes, notes = numbers.classes()
    with unfinished(out) as part, ThreadPoolExecutor(threads) as pool:
        for split, tars in splits.items():
            made, stats[split] = [], Statistics()
            for path in tars:
                name = str(path.resolve().relative_to(base))
                items = [(s, labels.get(number, -1), load) for s, number, load in scan(path).images]
                made.append(index_tar(path, name, items, part, pool, stats[split], bad, exif_orientation))
                say(f"{name}: {made[-1][1]} images")
            entries[split] = split_table(part, split, made)
        if len(bad) > max_bad or not stats["train"].n:
            first = "; ".join(f"{b['image']}: {b['reason']}" for b in bad[:3])
            n = stats["train"].n
            raise DataError(f"{len(bad)} unreadable images, {n} readable to train on; the first: {first}")
        write_json_lines(part / "bad.jsonl", bad)
    beside = os.path.relpath(base, out.resolve())
    manifest = describe(classes, entries, stats, len(bad), exif_orientation, None if beside == "." else beside)
    for note in notes:
        say(note)
    write_json(out / MANIFEST, manifest)
    return manifest


@contextmanager
def unfinished(out: Path) -> Iterator[Path]:
    """A new folder in ``out`` for the block to write to: its files are moved to ``out`` when the block ends, and
    removed if it raises."""
    part = out / ".index.part"
    shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed
    part.mkdir(parents=True)
    try:
        yield part
        for path in [path for path in part.rglob("*") if path.is_file()]:
            target = out / path.relative_to(part)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
            sync(target.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def index_tar(
    path: Path,
    name: str,
    images: list[tuple[Sample, int, Callable[[], bytes]]],
    out: Path,
    pool: ThreadPoolExecutor,
    stats: Statistics,
    bad: list,
    exif_orientation: bool,
) -> tuple[str, int, int, int, int, bytes]:
    """Writes the index of one tar's ``images``: (sample, label, function that reads its bytes). Returns the tar's row
    in the table of shards."""
    rows, keys = [], []
    items = [Item(f"{name}:{sample.key}.{sample.ext}", None, label, load) for sample, label, load in images]
    for start in range(0, len(items), CHUNK):
        chunk = items[start : start + CHUNK]
        results = pool.map(lambda item: examine(item, None, exif_orientation), chunk)
        for (sample, label, _), item, result in zip(images[start : start + CHUNK], chunk, results, strict=True):
            if isinstance(result, str):
                bad.append({"image": item.name, "reason": result})
                continue
            rows.append((sample.image.offset, len(result.data), zlib.crc32(result.data), label, sample.ext.encode()))
            keys.append(sample.key)
            stats.add(result, label)
    data = index_bytes(rows, keys)
    write(out / index_name(name), data)
    sha = bytes.fromhex(digest(path))
    return (name, len(rows), path.stat().st_size, len(data), zlib.crc32(data), sha)
