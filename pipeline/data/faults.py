"""Samples that cannot be read. Another takes the position, chosen by the seed alone, so that a repeated run takes the
same one; every case is logged, and too many stop the run."""

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
"""Unreadable samples that a run may meet in all, whatever share of the samples they are."""
BURST = 3
"""Unreadable samples that one step, or one shard, may have, whatever share of its samples they are."""
SHARE_OF_SHARD = 0.05
"""Share of a shard's samples that may be unreadable."""
BATCH_SECONDS = 120.0
"""Seconds without a batch after which a rank gives up."""


@dataclass(frozen=True)
class Fault:
    """A sample that could not be read at its position in the epoch, and the id of its replacement."""

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
    """The log entry of an unreadable sample."""
    k, row = shards.row(sample)
    return Fault(step, epoch, position, sample, shards.name(k), shards.key(sample), int(row["offset"]), error.kind,
                 str(error), replacement)  # fmt: skip


class BadSampleLog:
    """Writes the faults of one rank to a file, one JSON line each, and stops the run where they are too many: more
    than FORGIVEN and than ``share`` of all samples so far; or, in one shard, more than BURST and than SHARE_OF_SHARD
    (``share``, if that is larger) of it; or, in one step, more than BURST and than ``share`` of it.

    A run that resumes at step ``start`` first drops the lines from that step on, so that the file ends up the same.
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
        """Logs the faults of one step of ``rows`` samples, after which the run has had ``seen``. Raises DataError
        where they are too many."""
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
    """The result of a thread's task. If it takes longer than ``seconds``, this writes the stacks of all threads to
    standard error and raises NoProgressError; a thread that hangs does not keep the process from ending then."""
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
            continue  # raised by this wait, or by the task itself: then the future is done and the loop ends
    return future.result()


def _leave() -> None:
    """Ends the process 10 s after its main thread: Python would wait for a thread that hangs in a read."""
    threading.main_thread().join()
    time.sleep(10)
    os._exit(NoProgressError.code)
