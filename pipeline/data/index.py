"""A packed set as it is read: one manifest, and beside each tar a fixed-width table of where every image lies."""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import DataError
from pipeline.image import Image

MANIFEST = "manifest.json"
ROW = np.dtype([("offset", "<u8"), ("size", "<u4"), ("crc32", "<u4"), ("label", "<i4"), ("ext", "S4")])
"""One image of a shard: where its bytes start in the tar, how many, their CRC-32, its class (-1: none)."""


def write_table(path: Path, rows: np.ndarray) -> None:
    path.write_bytes(rows.tobytes())


class Shards:
    """One split of a packed set. Ids are 0..n-1 in shard order. Opening checks that every shard is there, as large
    as it was written and with a whole table; raises DataError otherwise."""

    def __init__(self, folder: Path, split: str, manifest: dict[str, Any]):
        self.folder, self.split, self.manifest = folder, split, manifest
        self.fingerprint: str = manifest["fingerprint"]
        self.classes: list[str] | None = manifest["classes"]
        shards = manifest["splits"][split]["shards"]
        self.paths = [folder / s["name"] for s in shards]
        self.starts = np.concatenate([[0], np.cumsum([s["images"] for s in shards], dtype=np.int64)])
        self.n = int(self.starts[-1])
        for path, shard in zip(self.paths, shards, strict=True):
            self._check(path, shard["bytes"], "shard")
            self._check(path.with_suffix(".idx"), shard["images"] * ROW.itemsize, "index of a shard")

    @classmethod
    def open(cls, folder: Path, split: str = "train") -> "Shards":
        path = Path(folder) / MANIFEST
        try:
            manifest = json.loads(path.read_text())
            if split not in manifest["splits"]:
                raise DataError(f"{folder}: no split {split!r}, only {', '.join(manifest['splits'])}")
            return cls(Path(folder), split, manifest)
        except FileNotFoundError as error:
            raise DataError(f"{path}: missing; these are no packed shards") from error
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(f"{path}: not a manifest of packed shards ({type(error).__name__}: {error})") from error

    @staticmethod
    def _check(path: Path, size: int, what: str) -> None:
        if not path.is_file():
            raise DataError(f"{path}: this {what} is missing; pack again, or bring it back")
        if path.stat().st_size != size:
            found = path.stat().st_size
            raise DataError(f"{path}: {found} bytes, {size} were written: this {what} was altered or cut")

    @cached_property
    def rows(self) -> np.ndarray:
        """The tables of all shards, one after another: structured [n]."""
        return np.concatenate([np.frombuffer(p.with_suffix(".idx").read_bytes(), ROW) for p in self.paths])

    @property
    def labels(self) -> np.ndarray:
        """Class of every id, int64 [n]; -1 without."""
        return self.rows["label"].astype(np.int64)

    def shard(self, sample: int) -> Path:
        return self.paths[int(np.searchsorted(self.starts, sample, "right")) - 1]

    def where(self, sample: int) -> str:
        """In words: shard, member and offset of an id."""
        row = self.rows[sample]
        return f"{self.shard(sample).name}: {self.key(sample)}.{row['ext'].decode()} at byte {row['offset']}"

    def key(self, sample: int) -> str:
        return f"{sample:09d}"

    def image(self, side: int | None) -> Image:
        """The images as views of ``side`` pixels; none: their own side. Raises DataError where they have no one."""
        height, width = self.manifest["height"], self.manifest["width"]
        if side is None:
            if height is None or height != width:
                raise DataError(f"{self.folder}: the images are not squares of one size; set views.size")
            side = height
        mean, std = tuple(self.manifest["mean"]), tuple(self.manifest["std"])
        assert side is not None
        return Image(self.manifest["channels"], side, mean, std)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
