"""Packed sets for tests: changed in place, and whole again."""

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.data.shards import MANIFEST, ROW, fingerprint, index_name
from pipeline.data.write import digest, split_table


def reindexed(folder: Path, split: str, change: Callable[[np.ndarray], None] = lambda rows: None) -> None:
    """Applies ``change`` to the rows of every index of a split, and makes tables and manifest agree with the files."""
    manifest = json.loads((folder / MANIFEST).read_text())
    made = []
    for shard in np.load(folder / f"{split}.npy"):
        tar = folder / shard["name"].decode()
        index = folder / index_name(tar.name)
        size = int(shard["images"]) * ROW.itemsize
        rows = np.frombuffer(index.read_bytes()[:size], ROW).copy()
        change(rows)
        index.write_bytes(data := rows.tobytes() + index.read_bytes()[size:])
        sha = bytes.fromhex(digest(tar))
        made.append((tar.name, len(rows), tar.stat().st_size, len(data), zlib.crc32(data), sha))
    manifest["splits"][split] = split_table(folder, split, made)
    manifest["fingerprint"] = fingerprint(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
