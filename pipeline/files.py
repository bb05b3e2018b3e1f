"""Writes files atomically: each is written under another name and renamed when it is complete.

A process that is killed meanwhile leaves `.NAME.part` beside the file, which the next process to write it replaces.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary path to write to, which is renamed to ``path`` when the block ends, or removed if it raises.
    ``durable``: the bytes are synced to disk before the rename, and the rename before this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        if durable:
            sync(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    if durable:
        sync(path.parent)


def sync(path: Path) -> None:
    """Syncs a file's bytes, or a folder's entries, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write(path: Path, data: bytes | str, durable: bool = True) -> None:
    """Writes bytes, or text in UTF-8, to a file."""
    with replacing(path, durable) as part:
        part.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(
    path: Path, body: Any, sort_keys: bool = True, default: Callable[[Any], Any] | None = None, durable: bool = True
) -> None:
    """Writes a value as JSON. ``default``: as in `json.dumps`, for values that JSON cannot represent."""
    write(path, json.dumps(body, indent=1, sort_keys=sort_keys, default=default) + "\n", durable)


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Writes one line of JSON for each row."""
    write(path, "".join(json.dumps(row) + "\n" for row in rows))
