"""Samples that cannot be read: another takes the place, by a rule without luck, and all of it is written down."""

import faulthandler
import json
import os
import threading
import time
from collections import defaultdict
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from pipeline import files
from pipeline.data.reader import BadSample
from pipeline.data.shards import Shards
from pipeline.errors import DataError, NoProgressError

T = TypeVar("T")

ATTEMPTS = 8
FORGIVEN = 10
"""A run is not stopped before it has met more unreadable samples than this."""
BURST = 3
"""One step, or one shard, may have this many unreadable samples, whatever share of it they are."""
SHARE_OF_SHARD = 0.05
"""A larger share of one shard's samples that are unreadable stops the run."""
BATCH_SECONDS = 120.0
"""Seconds without a batch after which a rank gives up."""


@dataclass(frozen=True)
class Fault:
    """A sample that could not be used where it was due, and the id that took its place."""

    step: int
    epoch: int
    position: int
    sample: int
    shard: str
    key: str
    offset: int
    kind: str
    """short, altered, undecodable or too small"""
    reason: str
    replacement: int

    def __str__(self) -> str:
        return f"{self.shard}: {self.key} at byte {self.offset} ({self.kind}: {self.reason})"


def fault(
    shards: Shards, sample: int, error: BadSample, *, step: int, epoch: int, position: int, replacement: int
) -> Fault:
    """What is written down of a sample that was due at a position."""
    k, row = shards.row(sample)
    return Fault(step, epoch, position, sample, shards.name(k), shards.key(sample), int(row["offset"]), error.kind,
                 str(error), replacement)  # fmt: skip


class BadSampleLog:
    """The faults of one rank, a JSON line each, and the limits past which they stop the run: in all, more than
    FORGIVEN and ``share`` of the samples seen; of one shard, more than BURST and SHARE_OF_SHARD (or ``share``, if that
    is more); of one step, more than BURST and ``share`` of it.

    Going on from a step drops what was written after it, so that a resumed run leaves the same file.
    """

    def __init__(self, path: Path | None, start: int, share: float, shards: Shards):
        self.path, self.share, self.count = path, share, 0
        self.shards, self.bad = shards, defaultdict[str, set[int]](set)
        if path is not None and path.exists():
            rows = [line for line in path.read_text().splitlines(True) if line.endswith("\n")]
            before = [line for line in rows if json.loads(line)["step"] < start]
            files.write(path, "".join(before))
            for line in before:
                self._count(Fault(**json.loads(line)))

    def _count(self, fault: Fault) -> None:
        self.count += 1
        self.bad[fault.shard].add(fault.sample)

    def record(self, faults: list[Fault], seen: int, rows: int) -> None:
        """Writes the faults of one step of ``rows`` samples; raises DataError once they are too many of ``seen``."""
        if not faults:
            return
        for each in faults:
            self._count(each)
        if self.path is not None:
            with self.path.open("a") as file:
                file.writelines(json.dumps(asdict(f)) + "\n" for f in faults)
        last = faults[-1]
        if self.count > max(FORGIVEN, self.share * seen):
            self._stop(f"{self.count} unreadable samples of {seen}", last)
        if len({f.position for f in faults}) > max(BURST, self.share * rows):
            self._stop(f"{len(faults)} unreadable samples in step {last.step}", last)
        for name in {f.shard for f in faults}:
            images = self._images(name)
            if len(self.bad[name]) > max(BURST, max(self.share, SHARE_OF_SHARD) * images):
                self._stop(f"{len(self.bad[name])} unreadable samples among the {images} of {name}", last)

    def _images(self, shard: str) -> int:
        return int(self.shards.shards["images"][self.shards.shards["name"] == shard.encode()][0])

    def _stop(self, count: str, last: Fault) -> None:
        raise DataError(
            f"{count}, the last {last}; all are in {self.path}: mend the shards, quarantine the samples with "
            f"`pipeline check --quarantine`, or raise max_bad_share"
        )


def await_batch(future: "Future[T]", seconds: float = BATCH_SECONDS) -> T:
    """What a thread makes, if it comes within ``seconds``: else every thread's stack is written to standard error and
    NoProgressError raised, and once the main thread has ended the process does too, whatever hangs."""
    begun = time.monotonic()
    while not future.done():
        left = begun + seconds - time.monotonic()
        if left <= 0:
            faulthandler.dump_traceback(2, all_threads=True)
            threading.Thread(target=_leave, name="watchdog", daemon=True).start()
            raise NoProgressError(
                f"no batch for {seconds:.0f} s: a read hangs or a thread is stuck; the stacks of all threads are in "
                f"the log; the same command goes on from the last checkpoint"
            )
        try:
            return future.result(timeout=left)
        except TimeoutError:
            continue  # ours, or the thread's own: then the future is done
    return future.result()


def _leave() -> None:
    """A thread that hangs in a read cannot be ended, and Python waits for it: not for ever."""
    threading.main_thread().join()
    time.sleep(10)
    os._exit(NoProgressError.code)
