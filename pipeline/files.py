"""Files that are there whole or not at all: each is written under another name and renamed when it is complete.

A process that is killed while it writes leaves `.NAME.part` beside the file; the next one to write it takes its place.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """Gives the name to write to; what was written there becomes ``path`` when the block ends, and is removed if the
    block raises. ``durable``: the bytes are on the disk before the rename, and the rename before this returns."""
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
    """Waits until a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write(path: Path, data: bytes | str, durable: bool = True) -> None:
    """A file of these bytes, or of this text in UTF-8."""
    with replacing(path, durable) as part:
        part.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(
    path: Path, body: Any, sort_keys: bool = True, default: Callable[[Any], Any] | None = None, durable: bool = True
) -> None:
    """A file of JSON; ``default`` turns what JSON has no form for into what it has, as `json.dumps` calls it."""
    write(path, json.dumps(body, indent=1, sort_keys=sort_keys, default=default) + "\n", durable)


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """A file with one line of JSON for each row."""
    write(path, "".join(json.dumps(row) + "\n" for row in rows))
