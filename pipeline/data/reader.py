"""Bytes of one sample by its id: one positional read, checked."""

import errno
import os
import time
import zlib
from functools import lru_cache
from pathlib import Path

from pipeline.data.index import Shards
from pipeline.errors import DataError

TRANSIENT = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR}
PATIENCE = 60.0
"""Seconds for which a read that may heal is tried again."""


class BadSample(Exception):
    """A sample that cannot be used: what is wrong with it, for the ledger."""


@lru_cache(maxsize=256)
def handle(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def read(shards: Shards, sample: int) -> bytes:
    """The image file's bytes. Raises BadSample where they are not those that were packed, DataError where the disk
    stays away."""
    row, path = shards.rows[sample], shards.shard(sample)
    data = _pread(path, int(row["size"]), int(row["offset"]))
    if len(data) != row["size"]:
        raise BadSample(f"{len(data)} of {row['size']} bytes")
    if zlib.crc32(data) != row["crc32"]:
        raise BadSample("its bytes are not those that were packed")
    return data


def _pread(path: Path, size: int, offset: int) -> bytes:
    end, pause = time.monotonic() + PATIENCE, 0.05
    while True:
        try:
            return os.pread(handle(path), size, offset)
        except OSError as error:
            if error.errno not in TRANSIENT or time.monotonic() + pause > end:
                raise DataError(f"{path}: {error.strerror}; the same command goes on once it can be read") from error
            time.sleep(pause)
            pause = min(2 * pause, 5.0)
