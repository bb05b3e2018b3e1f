"""A packed set as it is read: a small manifest, a table of shards for each split, and beside each tar a fixed-width
table of where every image lies.

    manifest.json      what the images are, and the splits with their number of images and shards
    train.npy          a row a shard: name, images, bytes, checksums (numpy's own file format, never pickled)
    train-000000.idx   ROW for each image of train-000000.tar, then the images' keys, a line each
    train.names        what the images were called where they came from, as JSON, a line each; no part of the
                       fingerprint, and not there where others wrote the tars
    quarantine.json    images and shards that are left out, where `pipeline check` has listed some
"""

import hashlib
import io
import json
import zlib
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.store import Store, open_store
from pipeline.errors import DataError
from pipeline.image import Image

MANIFEST, QUARANTINE, NAMES, VERSION = "manifest.json", "quarantine.json", ".names", 3
ROW = np.dtype([("offset", "<u8"), ("size", "<u4"), ("crc32", "<u4"), ("label", "<i4"), ("ext", "S4")])
"""One image of a shard: where its bytes start in the tar, how many, their CRC-32, its class (-1: none)."""
TABLES = 512
"""Shards whose tables are kept in memory: of a set that has no more, all."""


def shard_table(rows: Sequence[tuple[str, int, int, int, int, bytes]]) -> np.ndarray:
    """(name, images, bytes of the tar, bytes and CRC-32 of its index, SHA-256 of the tar) a shard -> structured."""
    names = [row[0].encode() for row in rows]
    width = max((len(name) for name in names), default=1)
    kind = np.dtype([
        ("name", f"S{width}"), ("images", "<u4"), ("bytes", "<u8"), ("index_bytes", "<u4"), ("index_crc32", "<u4"),
        ("sha256", "u1", (32,)),
    ])  # fmt: skip
    table = np.zeros(len(rows), kind)
    for at, (name, row) in enumerate(zip(names, rows, strict=True)):
        table[at] = (name, *row[1:5], np.frombuffer(row[5], np.uint8))
    return table


def table_bytes(table: np.ndarray) -> bytes:
    """A table of shards as its file."""
    file = io.BytesIO()
    np.save(file, table, allow_pickle=False)
    return file.getvalue()


def index_bytes(rows: Sequence[tuple], keys: Sequence[str]) -> bytes:
    """Rows as ROW has them and their images' keys -> the bytes of a shard's index."""
    return np.array(list(rows), ROW).tobytes() + "".join(f"{key}\n" for key in keys).encode("utf-8", "surrogateescape")


class Shards:
    """One split of a packed set. Ids are 0..n-1 in shard order, less what is quarantined. ``counts``: images of every
    shard, int64 [S]; ``starts``: id of each shard's first, [S + 1]. Opening checks that every shard is there and as
    large as it was written, with a whole index; raises DataError otherwise."""

    def __init__(self, location: Path | str, split: str, manifest: dict[str, Any], check: bool = True):
        self.folder, self.split, self.manifest = location, split, manifest
        self.store = open_store(location)
        base = manifest["base"]
        self.tars: Store = self.store if base is None else open_store(self.store.name(base))
        self.classes: list[str] | None = manifest["classes"]
        self.shards = self._shards(manifest["splits"][split])
        self.left_out, self.fingerprint = quarantined(self.store, manifest["fingerprint"])
        self.counts = self.shards["images"].astype(np.int64)
        self.gone = {k: self._gone(k) for k in self._named_in(self.left_out)}
        for k, gone in self.gone.items():
            self.counts[k] -= len(gone)
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        self.n = int(self.starts[-1])
        self.table = lru_cache(max(TABLES, len(self.shards) if self.n < 1 << 25 else 0))(self._table)
        if check:
            self.check()

    @classmethod
    def open(cls, location: Path | str, split: str = "train", check: bool = True) -> "Shards":
        """The split of the shards in a folder, or at any URL that fsspec knows."""
        store = open_store(location)
        path = store.name(MANIFEST)
        try:
            manifest = json.loads(store.read_file(MANIFEST))
            if manifest["version"] != VERSION:
                raise DataError(f"{path}: version {manifest['version']}, expected {VERSION}: pack again")
            if fingerprint(manifest) != manifest["fingerprint"]:
                raise DataError(f"{path}: altered since it was written (its fingerprint differs); pack again")
            if split not in manifest["splits"]:
                raise DataError(f"{location}: no split {split!r}, only {', '.join(manifest['splits'])}")
            return cls(location, split, manifest, check)
        except FileNotFoundError as error:
            raise DataError(f"{error.filename or path}: missing; these are no packed shards") from error
        except (ValueError, LookupError, TypeError, AttributeError, EOFError, RecursionError) as error:
            raise DataError(f"{path}: not a manifest of packed shards ({type(error).__name__}: {error})") from error

    def _shards(self, split: dict[str, Any]) -> np.ndarray:
        data = self.store.read_file(split["table"])
        if hashlib.sha256(data).hexdigest() != split["sha256"]:
            raise DataError(f"{self.store.name(split['table'])}: not the table that the manifest names; pack again")
        return np.load(io.BytesIO(data), allow_pickle=False)

    def _named_in(self, left_out: dict[str, Any]) -> list[int]:
        return np.flatnonzero(np.isin(self.shards["name"], [name.encode() for name in left_out])).tolist()

    def _gone(self, k: int) -> np.ndarray:
        """Rows of a shard that are quarantined."""
        keys = self.left_out[self.name(k)]
        if keys is None:
            return np.arange(int(self.shards["images"][k]))
        listed = set(keys)
        return np.array([i for i, key in enumerate(self._keys(k)) if key in listed], np.int64)

    def check(self) -> None:
        """Raises DataError unless every shard and every index is there, with the size it was written with."""
        for k in np.flatnonzero(self.counts).tolist():
            name, shard = self.name(k), self.shards[k]
            self._same_size(self.tars, name, int(shard["bytes"]), "shard")
            self._same_size(self.store, index_name(name), int(shard["index_bytes"]), "index of a shard")

    @staticmethod
    def _same_size(store: Store, name: str, size: int, what: str) -> None:
        actual = store.size(name)
        if actual is None:
            raise DataError(f"{store.name(name)}: this {what} is missing; pack again, or bring it back")
        if actual != size:
            raise DataError(f"{store.name(name)}: {actual} bytes, {size} were written: this {what} was altered or cut")

    def name(self, k: int) -> str:
        """File name of the k-th shard."""
        return self.shards["name"][k].decode()

    def _index(self, k: int) -> tuple[np.ndarray, bytes]:
        """The k-th shard's rows and key lines, as they were written."""
        name, shard = index_name(self.name(k)), self.shards[k]
        data = self.store.read_file(name)
        if len(data) != shard["index_bytes"] or zlib.crc32(data) != shard["index_crc32"]:
            raise DataError(f"{self.store.name(name)}: not the index that was written with its shard; pack again")
        size = int(shard["images"]) * ROW.itemsize
        return np.frombuffer(data[:size], ROW), data[size:]

    def _table(self, k: int) -> np.ndarray:
        rows = self._index(k)[0]
        return np.delete(rows, self.gone[k]) if k in self.gone else rows

    def _keys(self, k: int) -> list[str]:
        return self._index(k)[1].decode("utf-8", "surrogateescape").split("\n")[:-1]

    def locate(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shard of each id, and its row there."""
        which = np.searchsorted(self.starts, ids, "right") - 1
        return which, ids - self.starts[which]

    def row(self, sample: int) -> tuple[int, np.void]:
        """Shard of an id, and its row."""
        k = int(np.searchsorted(self.starts, sample, "right")) - 1
        return k, self.table(k)[sample - int(self.starts[k])]

    @cached_property
    def labels(self) -> np.ndarray:
        """Class of every id, int64 [n]; -1 without."""
        parts = [self._table(k)["label"] for k in np.flatnonzero(self.counts).tolist()]
        return np.concatenate([*parts, np.empty(0, np.int64)]).astype(np.int64)

    def where(self, sample: int) -> str:
        """In words: shard, member and offset of an id."""
        k, row = self.row(sample)
        return f"{self.name(k)}: {self.key(sample)}.{row['ext'].decode()} at byte {row['offset']}"

    def key(self, sample: int) -> str:
        """What the sample's members are called in the tar, less their extension."""
        k = int(np.searchsorted(self.starts, sample, "right")) - 1
        return self.keys(k)[sample - int(self.starts[k])]

    def keys(self, k: int) -> list[str]:
        """Keys of the rows of the k-th shard's table."""
        gone = set(self.gone.get(k, np.empty(0)).tolist())
        return [key for i, key in enumerate(self._keys(k)) if i not in gone]

    @cached_property
    def names(self) -> list[str]:
        """What each image was called where it came from, by id; its key where that is not known."""
        try:
            lines = self.store.read_file(f"{self.split}{NAMES}").splitlines()
        except FileNotFoundError:
            lines = []
        if len(lines) != int(self.shards["images"].sum()):
            return [key for k in np.flatnonzero(self.counts).tolist() for key in self.keys(k)]
        first = np.concatenate([[0], np.cumsum(self.shards["images"], dtype=np.int64)])
        gone = {int(first[k]) + int(i) for k, rows in self.gone.items() for i in rows}
        return [json.loads(line) for i, line in enumerate(lines) if i not in gone]

    def image(self, side: int | None) -> Image:
        """The images as views of ``side`` pixels; none: their own side. Raises DataError where they have no one."""
        height, width = self.manifest["height"], self.manifest["width"]
        if side is None:
            if height is None or height != width:
                raise DataError(f"{self.folder}: the images are not squares of one size; set views.size")
            side = height
        mean, std = tuple(self.manifest["mean"]), tuple(self.manifest["std"])
        assert side is not None
        cropped = (height, width) != (side, side)
        return Image(self.manifest["channels"], side, mean, std, self.manifest["exif_orientation"], cropped)


def fingerprint(manifest: dict[str, Any]) -> str:
    """SHA-256 of all else in a manifest, but for where the tars lie and how many images could not be packed."""
    body = {k: v for k, v in manifest.items() if k not in ("fingerprint", "bad")} | {"base": None}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def index_name(tar: str) -> str:
    return f"{tar.removesuffix('.tar')}.idx"


def quarantined(store: Store, fingerprint: str) -> tuple[dict[str, list[str] | None], str]:
    """What is left out, keys by shard (None: all of it), and the fingerprint that the set then has."""
    try:
        data = store.read_file(QUARANTINE)
    except FileNotFoundError:
        return {}, fingerprint
    try:
        listed = json.loads(data)
        assert isinstance(listed, dict)
    except (ValueError, AssertionError):
        raise DataError(f"{store.name(QUARANTINE)}: not a list of images by shard; delete it, check again") from None
    return listed, hashlib.sha256(fingerprint.encode() + data).hexdigest()


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
