"""The files of a packed set, read by offset: in a folder, or at a URL that fsspec knows."""

import errno
import os
import resource
from collections.abc import Callable
from functools import lru_cache
from itertools import repeat
from pathlib import Path
from typing import Protocol

OPEN = 512
"""Files that a folder keeps open, if the limit (ulimit -n) is at least eight times as large."""
GAP, RANGE = 1 << 17, 1 << 20
"""Reads from a URL that are less than GAP bytes apart are joined into one request, of about RANGE bytes at most."""

Wanted = list[tuple[str, list[int], list[int]]]
"""For each file its name, the offsets to read at in rising order, and the number of bytes at each."""


class Store(Protocol):
    """Reads files by name. Reading raises OSError; a read past the end of a file returns fewer bytes."""

    def name(self, name: str) -> str:
        """The path or URL of a file."""
        ...

    def size(self, name: str) -> int | None:
        """The bytes of a file; None: it does not exist."""
        ...

    def read_file(self, name: str) -> bytes: ...

    def read(self, name: str, offset: int, size: int) -> bytes: ...

    def read_all(self, wanted: Wanted) -> list[bytes]:
        """Reads many ranges; returns their bytes in order. A range that cannot be read may raise OSError or be empty:
        `read` then tells the error."""
        ...

    def forget(self, name: str) -> None:
        """Closes or forgets the file, so that the next read opens it again."""
        ...


class Handle:
    """An open file, closed when the last reference to it is gone."""

    def __init__(self, path: str):
        self.fd = -1
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self):
        if self.fd >= 0:
            os.close(self.fd)


def few() -> int:
    """Files that one folder may keep open: an eighth of the process's limit, since several are open at once."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return OPEN if soft == resource.RLIM_INFINITY else max(1, min(OPEN, soft // 8))


class Folder:
    """Local files. They are read with pread, which returns fewer bytes of a truncated file; a memory map would end
    the process with SIGBUS."""

    def __init__(self, path: Path):
        self.path = path
        self.handles: Callable[[str], Handle] = lru_cache(few())(lambda name: Handle(self.name(name)))

    def handle(self, name: str) -> Handle:
        """The open file. Where the process may open no more, the files that this folder keeps open are closed."""
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
        handle = self.handle(name)  # this reference keeps the file open until it is read
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
        """Joins neighbouring ranges into one request; asynchronous file systems send the requests concurrently."""
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
