"""Where shards lie: a folder read by position, or any URL that fsspec knows."""

import errno
import os
import resource
from collections.abc import Callable
from functools import lru_cache
from itertools import repeat
from pathlib import Path
from typing import Protocol

OPEN = 512
"""Files kept open, where the limit (ulimit -n) leaves as many again several times over."""
GAP, RANGE = 1 << 17, 1 << 20
"""Of a URL: bytes that are read and thrown away sooner than asked past, and of one request at most, about."""

Wanted = list[tuple[str, list[int], list[int]]]
"""A file's name, where what is wanted of it begins, from front to back, and how many bytes each."""


class Store(Protocol):
    """Files by name. Reading raises OSError; what lies past the end of a file is not returned."""

    def name(self, name: str) -> str:
        """A file as the user knows it."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes of a file; None: there is none."""
        ...

    def read_file(self, name: str) -> bytes: ...

    def read(self, name: str, offset: int, size: int) -> bytes: ...

    def read_all(self, wanted: Wanted) -> list[bytes]:
        """Many pieces at once, one after another. What could not be read may be an error or no bytes: `read` tells."""
        ...

    def forget(self, name: str) -> None:
        """Opens the file anew the next time."""
        ...


class Handle:
    """An open file, closed when nobody reads from it any more."""

    def __init__(self, path: str):
        self.fd = -1
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self):
        if self.fd >= 0:
            os.close(self.fd)


def few() -> int:
    """Files that one folder may keep open: an eighth of the limit, since several are read from at a time."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return OPEN if soft == resource.RLIM_INFINITY else max(1, min(OPEN, soft // 8))


class Folder:
    """Local files, read at a position with pread: a file that was cut gives fewer bytes, where a mapped one would
    kill the process."""

    def __init__(self, path: Path):
        self.path = path
        self.handles: Callable[[str], Handle] = lru_cache(few())(lambda name: Handle(self.name(name)))

    def handle(self, name: str) -> Handle:
        """An open file; where no more may be open, those that this folder keeps are closed first."""
        try:
            return self.handles(name)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self.forget(name)
            return self.handles(name)

    def name(self, name: str) -> str:
        return name if name.startswith("/") or "://" in name else f"{self.path}/{name}"

    def size(self, name: str) -> int | None:
        try:
            return os.stat(self.name(name)).st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read_file(self, name: str) -> bytes:
        return Path(self.name(name)).read_bytes()

    def read(self, name: str, offset: int, size: int) -> bytes:
        handle = self.handle(name)  # held until it is read: the last to hold it closes it
        return os.pread(handle.fd, size, offset)

    def read_all(self, wanted: Wanted) -> list[bytes]:
        out: list[bytes] = []
        for name, offsets, sizes in wanted:
            handle = self.handle(name)
            out.extend(map(os.pread, repeat(handle.fd), sizes, offsets))
        return out

    def forget(self, name: str) -> None:
        self.handles.cache_clear()  # type: ignore[attr-defined]


class Remote:
    """Files below a URL that fsspec knows (s3://, gs://, https://, memory://), read in ranges."""

    def __init__(self, url: str):
        from fsspec.core import url_to_fs

        self.url = url.rstrip("/")
        self.files, self.path = url_to_fs(self.url)

    def name(self, name: str) -> str:
        return name if "://" in name else f"{self.url}/{name}"

    def size(self, name: str) -> int | None:
        try:
            return self.files.size(f"{self.path}/{name}")
        except FileNotFoundError:
            return None

    def read_file(self, name: str) -> bytes:
        return self.files.cat_file(f"{self.path}/{name}")

    def read(self, name: str, offset: int, size: int) -> bytes:
        return self.files.cat_file(f"{self.path}/{name}", start=offset, end=offset + size)

    def read_all(self, wanted: Wanted) -> list[bytes]:
        """Neighbours in one request; of a file system that can, requests side by side."""
        from fsspec.utils import merge_offset_ranges

        pieces = [(f"{self.path}/{name}", lo, lo + n) for name, *both in wanted for lo, n in zip(*both, strict=True)]
        paths, starts, ends = map(list, zip(*pieces, strict=True))
        ranges = merge_offset_ranges(paths, starts, ends, GAP, RANGE, sort=False)
        got = zip(*ranges, self.files.cat_ranges(*ranges, on_error="return"), strict=True)
        out, (path, start, end, data) = [], next(got)
        for file, lo, hi in pieces:
            while not (file == path and start <= lo and hi <= end):
                path, start, end, data = next(got)
            out.append(data[lo - start : hi - start] if isinstance(data, bytes) else b"")
        return out

    def forget(self, name: str) -> None:
        self.files.invalidate_cache()


def open_store(location: Path | str) -> Store:
    """The files of a folder or a URL."""
    if "://" in str(location):
        return Remote(str(location))
    return Folder(Path(location).expanduser())
