"""Bytes of samples by their ids: positional reads, checked against the index."""

import errno
import os
import random
import time
from itertools import pairwise

import numpy as np

from pipeline.data.index import Shards
from pipeline.data.store import Folder, Store
from pipeline.errors import DataError

try:
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

TRANSIENT = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.ECONNRESET, errno.ENETUNREACH,
             errno.EHOSTUNREACH, errno.EREMOTEIO, errno.EBUSY}  # fmt: skip
GAP, RANGE = 1 << 13, 1 << 18
"""Bytes that are read and thrown away sooner than read past by another call; and of one call at most, about: what the
cache holds until it is checked."""
FAR_GAP, FAR_RANGE = 1 << 17, 1 << 20
"""The same for a URL."""
PATIENCE = 60.0
"""Seconds for which a read that may heal is tried again."""


class BadSample(Exception):
    """A sample that cannot be used. ``kind``: short, altered, undecodable or too small; the text says more."""

    def __init__(self, kind: str, text: str):
        super().__init__(text)
        self.kind = kind


def read(shards: Shards, sample: int) -> bytes:
    """The image file's bytes. Raises BadSample where they are not those that were packed, DataError where the disk
    stays away."""
    k, row = shards.row(sample)
    return checked(shards.tars, shards.name(k), *row.item()[:3])


def checked(store: Store, name: str, offset: int, size: int, check: int) -> bytes:
    """``size`` bytes of a file from ``offset`` on, if they are the right ones. Raises as `read` does."""
    data = patient(store, name, offset, size)
    if len(data) != size:
        raise BadSample("short", f"{len(data)} of {size} bytes")
    if crc32(data) != check:
        raise BadSample("altered", "its bytes are not those that were packed")
    return data


class Buffer:
    """Memory that is read into, again and again: fresh pages would cost several times the copy."""

    def __init__(self):
        self.bytes = bytearray()

    def view(self, size: int) -> memoryview:
        if len(self.bytes) < size:
            self.bytes = bytearray(size + size // 4)
        return memoryview(self.bytes)[:size]


def read_many(shards: Shards, ids: np.ndarray, buffer: Buffer | None = None) -> list[memoryview | BadSample]:
    """The bytes of many samples, or what is wrong with them; shard by shard in order of offset, neighbours at once.
    They lie in ``buffer``, if one is given, until it is used again. Raises DataError where the disk stays away."""
    ids = np.asarray(ids)
    out: list[memoryview | BadSample] = [memoryview(b"")] * len(ids)
    if not len(ids):
        return out
    order = np.argsort(ids, kind="stable")
    which, at = shards.locate(ids[order])
    edges = np.flatnonzero(np.diff(which, prepend=-1, append=-1)).tolist()
    rows = np.concatenate([shards.table(int(which[a]))[at[a:b]] for a, b in pairwise(edges)])
    limits = (GAP, RANGE) if isinstance(shards.tars, Folder) else (FAR_GAP, FAR_RANGE)
    firsts, starts, ends = ranges(which, rows, *limits)
    low = rows["offset"].astype(np.int64) - np.repeat(starts, np.diff(firsts, append=len(rows)))
    columns = order, low, low + rows["size"], rows["crc32"]
    wanted = list(zip(*(column.tolist() for column in columns), strict=True))
    sizes = (ends - starts).tolist()
    room, crc, names = (buffer or Buffer()).view(sum(sizes)), crc32, {k: shards.name(k) for k in which[edges[:-1]]}
    bounds = pairwise([*firsts.tolist(), len(rows)])
    for (first, last), start, size in zip(bounds, starts.tolist(), sizes, strict=True):
        part, room, name = room[:size], room[size:], names[which[first]]
        got = _into(shards.tars, name, start, part)
        for place, lo, hi, check in wanted[first:last]:
            data = part[lo:hi]
            if hi <= got and crc(data) == check:
                out[place] = data
            else:
                out[place] = _again(shards.tars, name, start + lo, hi - lo, check)
    return out


def ranges(which: np.ndarray, rows: np.ndarray, gap: int, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which of the rows, in order of shard and offset, begin a range that is read at once; where the ranges start and
    end. Neighbours are joined over a gap that costs less than another call, to ``most`` bytes or so."""
    starts = rows["offset"].astype(np.int64)
    ends = starts + rows["size"]
    new = (starts[1:] - ends[:-1] > gap) | (starts[1:] // most != starts[:-1] // most) | (which[1:] != which[:-1])
    firsts = np.flatnonzero(np.concatenate([[True], new]))
    return firsts, starts[firsts], np.maximum.reduceat(ends, firsts)


def _again(store: Store, name: str, offset: int, size: int, check: int) -> memoryview | BadSample:
    """What was odd in a range, by itself and with patience."""
    try:
        return memoryview(checked(store, name, offset, size, check))
    except BadSample as error:
        return error


def _into(store: Store, name: str, offset: int, part: memoryview) -> int:
    """Reads into memory -> bytes that were there; 0 where it failed in any way."""
    try:
        if isinstance(store, Folder):
            handle = store.handle(name)
            return os.preadv(handle.fd, [part], offset)
        data = store.read(name, offset, len(part))
    except OSError:
        return 0
    part[: len(data)] = data
    return len(data)


def patient(store: Store, name: str, offset: int, size: int) -> bytes:
    """A read that is tried again, opened anew, while it fails in a way that may heal, for PATIENCE seconds; then, or
    where it fails for good, DataError."""
    end, pause = time.monotonic() + PATIENCE, 0.05
    while True:
        try:
            return store.read(name, offset, size)
        except OSError as error:
            left = end - time.monotonic()
            if not transient(error) or left <= 0:
                why = error.strerror or str(error) or type(error).__name__
                raise DataError(
                    f"{store.name(name)}: {why}; the same command goes on once it can be read"
                ) from error
            store.forget(name)
            time.sleep(min(left, pause * random.uniform(0.5, 1.0)))
            pause = min(2 * pause, 5.0)


def transient(error: OSError) -> bool:
    """Whether an error may pass; one without a number comes from a server."""
    if isinstance(error, (TimeoutError, ConnectionError)) or error.errno in TRANSIENT:
        return True
    return error.errno is None and not isinstance(error, (FileNotFoundError, PermissionError))
