"""Finds damage in shards: compares every byte of a packed set with the checksums that were written with it."""

import hashlib
import json
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline import files
from pipeline.data import tar
from pipeline.data.reader import patient
from pipeline.data.shards import MANIFEST, QUARANTINE, Shards, index_name
from pipeline.data.sources import Item, Listing
from pipeline.data.sources.webdataset import scan
from pipeline.data.store import Store
from pipeline.data.write import CHUNK, examine
from pipeline.errors import DataError

PART = 1 << 22


class Problem(NamedTuple):
    """What is wrong with a shard, or with one image of it. ``key`` is the image's; None: the shard cannot be used at
    all; "": bytes of the shard have changed, but none of an image."""

    shard: str
    key: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.shard}{f': {self.key}' if self.key else ''}: {self.text}"


def problems(location: Path | str, threads: int = 1) -> Iterator[Problem]:
    """All problems of the packed set at a location, except of shards and images on its quarantine list."""
    splits = Shards.open(location, check=False).manifest["splits"]
    for split in splits:
        shards = Shards.open(location, split, check=False)
        with ThreadPoolExecutor(threads) as pool:
            for faults in pool.map(lambda k, shards=shards: list(shard(shards, k)), np.flatnonzero(shards.counts)):
                yield from faults


def shard(shards: Shards, k: int) -> Iterator[Problem]:
    name, row = shards.name(k), shards.shards[k]
    try:
        rows, keys = shards.table(k), shards.keys(k)
    except (DataError, FileNotFoundError) as error:
        yield Problem(name, None, str(error) if isinstance(error, DataError) else f"no {index_name(name)} beside it")
        return
    size = shards.tars.size(name)
    if size is None:
        yield Problem(name, None, "missing")
        return
    try:
        if size == row["bytes"] and digest(shards.tars, name, size) == row["sha256"].tobytes():
            return
        broken = list(images(shards, name, rows, keys))
    except DataError as error:
        yield Problem(name, None, str(error))
        return
    yield from broken
    if not broken and not len(shards.gone.get(k, ())):
        what = structure(shards.tars, name, size) or "not in an image"
        yield Problem(name, "", f"altered ({what}); all images whole")


def images(shards: Shards, name: str, rows: np.ndarray, keys: list[str]) -> Iterator[Problem]:
    for row, key in zip(rows.tolist(), keys, strict=True):
        offset, size, crc32 = row[:3]
        data = patient(shards.tars, name, offset, size)
        if len(data) < size:
            yield Problem(name, key, f"{len(data)} of {size} bytes at byte {offset}: the shard was cut")
        elif zlib.crc32(data) != crc32:
            yield Problem(name, key, f"altered: other bytes at byte {offset} than were packed")


def digest(tars: Store, name: str, size: int) -> bytes:
    sha = hashlib.sha256()
    for offset in range(0, size, PART):
        sha.update(patient(tars, name, offset, PART))
    return sha.digest()


def structure(tars: Store, name: str, size: int) -> str:
    """What is wrong with the tar's headers and end; empty if nothing is."""
    try:
        for _ in tar.members(lambda offset, count: patient(tars, name, offset, count), size):
            pass
    except tar.BrokenTar as error:
        return str(error)
    return ""


def unindexed(paths: list[Path], threads: int = 1) -> Iterator[Problem]:
    """All problems of tars without an index: their structure, and images that cannot be decoded."""
    with ThreadPoolExecutor(threads) as pool:
        for path in paths:
            samples, wrong, _ = scan(path)
            yield from (Problem(path.name, None, text.removeprefix(f"{path.name}: ")) for text in wrong)
            items = [Item(sample.key, None, -1, load) for sample, _, load in samples]
            for item, result in zip(items, pool.map(lambda item: examine(item, None), items), strict=True):
                if isinstance(result, str):
                    yield Problem(path.name, item.name, f"undecodable: {result}")


def undecodable(listing: Listing, threads: int = 1) -> Iterator[Problem]:
    """The images of a folder that cannot be decoded."""
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(listing.items), CHUNK):
            chunk = listing.items[start : start + CHUNK]
            for item, result in zip(chunk, pool.map(lambda item: examine(item, None), chunk), strict=True):
                if isinstance(result, str):
                    yield Problem(item.name, "", f"undecodable: {result}")


def quarantine(folder: Path, problems: list[Problem]) -> Path:
    """Adds shards and images to the set's quarantine list, which its fingerprint covers. Returns the list's path;
    raises DataError where the folder holds no packed shards."""
    path = folder / QUARANTINE
    if not (folder / MANIFEST).exists():
        raise DataError(f"{folder}: no packed shards; `pipeline index` makes them of tars, then check again")
    listed: dict[str, list[str] | None] = json.loads(path.read_text()) if path.exists() else {}
    for problem in problems:
        if problem.key is None:
            listed[problem.shard] = None
        elif problem.key and (keys := listed.setdefault(problem.shard, [])) is not None:
            listed[problem.shard] = sorted({*keys, problem.key})
    if listed:
        files.write_json(path, listed)
    return path


def from_logs(paths: list[Path]) -> list[Problem]:
    """The images that training runs logged as unreadable (`faults.BadSampleLog`), each once."""
    by_image = {}
    for path in paths:
        for line in path.read_text().splitlines():
            row = json.loads(line)
            by_image[row["shard"], row["key"]] = Problem(row["shard"], row["key"], f"{row['kind']}: {row['reason']}")
    return [by_image[at] for at in sorted(by_image)]
