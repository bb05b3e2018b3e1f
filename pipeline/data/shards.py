"""Reads a packed set: a manifest, a table of shards for each split, and for each tar an index of its images.

    manifest.json      classes, image size and statistics, and the number of images and shards of each split
    train.npy          one row for each shard: name, images, bytes, checksums (numpy's file format, without pickle)
    train-000000.idx   one ROW for each image of train-000000.tar, then the images' keys, one line each
    train.names        the images' names in the source, one JSON string a line; no part of the fingerprint, and
                       absent where the tars were indexed and not packed here
    quarantine.json    images and shards that are left out, if `pipeline check` has listed any
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
"""One image of a shard: the offset of its bytes in the tar, their number and CRC-32, its class (-1: none) and its
extension."""
TABLES = 512
"""Shards whose tables are kept in memory."""


def shard_table(rows: Sequence[tuple[str, int, int, int, int, bytes]]) -> np.ndarray:
    """Rows (name, images, bytes of the tar, bytes of its index, CRC-32 of its index, SHA-256 of the tar), one for each
    shard -> a structured array."""
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
    """The bytes of the file of a table of shards."""
    file = io.BytesIO()
    np.save(file, table, allow_pickle=False)
    return file.getvalue()


def index_bytes(rows: Sequence[tuple], keys: Sequence[str]) -> bytes:
    """The bytes of a shard's index file, from rows of type ROW and the images' keys."""
    return np.array(list(rows), ROW).tobytes() + "".join(f"{key}\n" for key in keys).encode("utf-8", "surrogateescape")


class Shards:
    """One split of a packed set. Images that are not quarantined have the ids 0..n-1, in the order of the shards.
    ``counts``: images of every shard, int64 [S]; ``starts``: the id of each shard's first image, int64 [S + 1].
    Opening raises DataError unless every shard and index exists with the size it was written with."""

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

    def __reduce__(self) -> tuple:
        return reopen, (self.folder, self.split, self.manifest, self.fingerprint)

    @classmethod
    def open(cls, location: Path | str, split: str = "train", check: bool = True) -> "Shards":
        """Opens a split of the shards in a folder, or at a URL that fsspec knows. ``check``: whether the files' sizes
        are checked. Raises DataError where these are not whole packed shards, or have no such split."""
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
        """The quarantined rows of a shard's index."""
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
        """The file name of the k-th shard."""
        return self.shards["name"][k].decode()

    def _index(self, k: int) -> tuple[np.ndarray, bytes]:
        """The rows and the lines of keys in the k-th shard's index. Raises DataError where its CRC-32 is not that of
        the table of shards."""
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
        """The shard of each id, and the id's row in that shard's table."""
        which = np.searchsorted(self.starts, ids, "right") - 1
        return which, ids - self.starts[which]

    def row(self, sample: int) -> tuple[int, np.void]:
        """The shard of an id, and its row of type ROW."""
        k = int(np.searchsorted(self.starts, sample, "right")) - 1
        return k, self.table(k)[sample - int(self.starts[k])]

    @cached_property
    def labels(self) -> np.ndarray:
        """The class of every id, int64 [n]; -1: none."""
        parts = [self._table(k)["label"] for k in np.flatnonzero(self.counts).tolist()]
        return np.concatenate([*parts, np.empty(0, np.int64)]).astype(np.int64)

    def where(self, sample: int) -> str:
        """Names the shard, member and offset of an id, for messages."""
        k, row = self.row(sample)
        return f"{self.name(k)}: {self.key(sample)}.{row['ext'].decode()} at byte {row['offset']}"

    def key(self, sample: int) -> str:
        """The key of a sample: the name of its members in the tar, without their extension."""
        k = int(np.searchsorted(self.starts, sample, "right")) - 1
        return self.keys(k)[sample - int(self.starts[k])]

    def keys(self, k: int) -> list[str]:
        """The keys of the k-th shard's images, in the order of its table."""
        gone = set(self.gone.get(k, np.empty(0)).tolist())
        return [key for i, key in enumerate(self._keys(k)) if i not in gone]

    @cached_property
    def names(self) -> list[str]:
        """The name of each image in the source that it was packed from, by id; its key where the name is not known."""
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
        """The shape and normalisation of square images of ``side`` pixels; None: of the packed images' side. Raises
        DataError where these are not squares of one size."""
        height, width = self.manifest["height"], self.manifest["width"]
        if side is None:
            if height is None or height != width:
                raise DataError(f"{self.folder}: the images are not squares of one size; set views.size")
            side = height
        mean, std = tuple(self.manifest["mean"]), tuple(self.manifest["std"])
        assert side is not None
        cropped = (height, width) != (side, side)
        return Image(self.manifest["channels"], side, mean, std, self.manifest["exif_orientation"], cropped)


def reopen(location: Path | str, split: str, manifest: dict[str, Any], fingerprint: str) -> Shards:
    """The shards that another process has opened. Raises DataError where they are not the same any more."""
    shards = Shards(location, split, manifest, check=False)
    if shards.fingerprint != fingerprint:
        raise DataError(f"{location}: samples were quarantined since this run began; start it again")
    return shards


def fingerprint(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest, without its own fingerprint, the tars' location and the number of unreadable images."""
    body = {k: v for k, v in manifest.items() if k not in ("fingerprint", "bad")} | {"base": None}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def index_name(tar: str) -> str:
    return f"{tar.removesuffix('.tar')}.idx"


def quarantined(store: Store, fingerprint: str) -> tuple[dict[str, list[str] | None], str]:
    """The quarantined keys by shard (None: the whole shard), and the fingerprint of the set without them."""
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
