"""Reads the bytes of samples by their ids, and checks them against the CRC-32 in the shard's index."""

import errno
import random
import time
from itertools import pairwise
from typing import Any

import numpy as np

from pipeline.data.shards import Shards
from pipeline.data.store import Store, Wanted
from pipeline.errors import DataError

try:
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

TRANSIENT = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.ECONNRESET, errno.ENETUNREACH,
             errno.EHOSTUNREACH, errno.EREMOTEIO, errno.EBUSY}  # fmt: skip
RETRY_SECONDS = 60.0
"""Seconds for which a read is tried again after an error that may pass."""


class BadSample(Exception):
    """A sample that cannot be used. ``kind``: "short", "altered", "undecodable" or "too small"."""

    def __init__(self, kind: str, text: str):
        super().__init__(text)
        self.kind = kind


def read(shards: Shards, sample: int) -> bytes:
    """The bytes of a sample's image file. Raises BadSample where they are not the packed ones, DataError where the
    shard cannot be read for RETRY_SECONDS."""
    k, row = shards.row(sample)
    return checked(shards.tars, shards.name(k), *row.item()[:3])


def checked(store: Store, name: str, offset: int, size: int, check: int) -> bytes:
    """``size`` bytes of a file from ``offset`` on, whose CRC-32 must be ``check``. Raises as `read` does."""
    data = patient(store, name, offset, size)
    if len(data) != size:
        raise BadSample("short", f"{len(data)} of {size} bytes")
    if crc32(data) != check:
        raise BadSample("altered", "its bytes are not those that were packed")
    return data


def read_many(shards: Shards, ids: np.ndarray) -> list[bytes | BadSample]:
    """The bytes of many samples in the order of ``ids``, a BadSample for each that cannot be used. They are read shard
    by shard in the order of their offsets. Raises DataError as `read` does."""
    ids = np.asarray(ids)
    if not len(ids):
        return []
    order = np.argsort(ids, kind="stable")
    which, at = shards.locate(ids[order])
    edges = np.flatnonzero(np.diff(which, prepend=-1, append=-1)).tolist()
    wanted: Wanted = []
    checks: list[int] = []
    for a, b in pairwise(edges):
        k = int(which[a])
        rows = shards.table(k)[at[a:b]]
        wanted.append((shards.name(k), rows["offset"].tolist(), rows["size"].tolist()))
        checks += rows["crc32"].tolist()
    try:
        files: list[Any] = shards.tars.read_all(wanted)
    except OSError:
        files = [b""] * len(ids)
    sizes = [size for _, _, many in wanted for size in many]
    if list(map(crc32, files)) != checks or list(map(len, files)) != sizes:
        places = [(name, offset) for name, many, _ in wanted for offset in many]
        for i, check in enumerate(checks):
            if crc32(files[i]) != check or len(files[i]) != sizes[i]:
                files[i] = _again(shards.tars, *places[i], sizes[i], check)
    out: list[Any] = [None] * len(ids)
    for row, data in zip(order.tolist(), files, strict=True):
        out[row] = data
    return out


def _again(store: Store, name: str, offset: int, size: int, check: int) -> bytes | BadSample:
    """Reads a sample again that failed in a joint read, by itself and with retries."""
    try:
        return checked(store, name, offset, size, check)
    except BadSample as error:
        return error


def patient(store: Store, name: str, offset: int, size: int) -> bytes:
    """Reads bytes of a file. After an error that may pass it opens the file again and retries, for RETRY_SECONDS.
    Raises DataError after that, and at once for any other error."""
    end, pause = time.monotonic() + RETRY_SECONDS, 0.05
    while True:
        try:
            return store.read(name, offset, size)
        except OSError as error:
            left = end - time.monotonic()
            if not transient(error) or left <= 0:
                why = error.strerror or str(error) or type(error).__name__
                raise DataError(f"{store.name(name)}: {why}; the same command goes on once it can be read") from error
            store.forget(name)
            time.sleep(min(left, pause * random.uniform(0.5, 1.0)))
            pause = min(2 * pause, 5.0)


def transient(error: OSError) -> bool:
    """Whether an error may pass. Errors without an errno come from a remote store, and may."""
    if isinstance(error, (TimeoutError, ConnectionError)) or error.errno in TRANSIENT:
        return True
    return error.errno is None and not isinstance(error, (FileNotFoundError, PermissionError))
