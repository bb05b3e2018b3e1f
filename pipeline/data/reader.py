"""Bytes of samples by their ids: positional reads, checked against the index."""

import errno
import os
import random
import time
import zlib
from itertools import pairwise

import numpy as np

from pipeline.data.index import Shards
from pipeline.data.store import Folder, Store
from pipeline.errors import DataError

TRANSIENT = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.ECONNRESET, errno.ENETUNREACH,
             errno.EHOSTUNREACH, errno.EREMOTEIO, errno.EBUSY}  # fmt: skip
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


def checked(store: Store, name: str, offset: int, size: int, crc32: int) -> bytes:
    """``size`` bytes of a file from ``offset`` on, if they are the right ones. Raises as `read` does."""
    data = patient(store, name, offset, size)
    if len(data) != size:
        raise BadSample("short", f"{len(data)} of {size} bytes")
    if zlib.crc32(data) != crc32:
        raise BadSample("altered", "its bytes are not those that were packed")
    return data


def read_many(shards: Shards, ids: np.ndarray) -> list[bytes | BadSample]:
    """The bytes of many samples, each as `read` gives it or what it raises; shard by shard in order of offset."""
    ids = np.asarray(ids)
    out: list[bytes | BadSample] = [b""] * len(ids)
    order = np.argsort(ids, kind="stable")
    which, at = shards.locate(ids[order])
    edges = np.flatnonzero(np.diff(which, prepend=-1, append=-1)).tolist()
    for first, last in pairwise(edges):
        k = int(which[first])
        rows = shards.table(k)[at[first:last]]
        wanted = zip(order[first:last].tolist(), *(rows[n].tolist() for n in ("offset", "size", "crc32")), strict=True)
        _fill(out, shards.tars, shards.name(k), wanted)
    return out


def _fill(out: list, store: Store, name: str, wanted) -> None:
    """Reads (place in ``out``, offset, size, crc32) of one shard; whatever is odd is read again by `checked`."""
    pread, crc, handle = os.pread, zlib.crc32, None
    if isinstance(store, Folder):
        try:
            handle = store.handle(name)
        except OSError:
            handle = None
    for place, offset, size, crc32 in wanted:
        if handle is not None:
            try:
                data = pread(handle.fd, size, offset)
            except OSError:
                data = b""
            if len(data) == size and crc(data) == crc32:
                out[place] = data
                continue
        try:
            out[place] = checked(store, name, offset, size, crc32)
        except BadSample as error:
            out[place] = error


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
    return error.errno in TRANSIENT or isinstance(error, (TimeoutError, ConnectionError))
