"""Samples that cannot be read: another takes the place, by a rule without luck, and all of it is written down."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pipeline import keyed
from pipeline.errors import DataError

ATTEMPTS = 8
FORGIVEN = 10
"""Unreadable samples that never stop a run, however few it has seen."""


@dataclass(frozen=True)
class Fault:
    """A sample that could not be used where it was due, and what took its place."""

    step: int
    epoch: int
    position: int
    where: str
    reason: str
    replacement: int


def substitute(seed: int, epoch: int, position: int, attempt: int, n: int) -> int:
    """The id that takes a bad sample's position at an attempt from 1 on: of another permutation of the same n."""
    return int(keyed.permute(np.array([position]), n, seed, epoch, "replace", attempt)[0])


class Ledger:
    """The faults of one rank, a JSON line each, and the limits past which they stop the run.

    Going on from a step drops what was written after it, so that a resumed run leaves the same file.
    """

    def __init__(self, path: Path | None, start: int, share: float):
        self.path, self.share, self.count = path, share, 0
        if path is not None and path.exists():
            rows = [line for line in path.read_text().splitlines(True) if line.endswith("\n")]
            kept = [line for line in rows if json.loads(line)["step"] < start]
            path.write_text("".join(kept))
            self.count = len(kept)

    def record(self, faults: list[Fault], seen: int) -> None:
        """Writes the faults of one step; raises DataError once they are too many of ``seen`` samples."""
        if not faults:
            return
        self.count += len(faults)
        if self.path is not None:
            with self.path.open("a") as file:
                file.writelines(json.dumps(asdict(f)) + "\n" for f in faults)
        if self.count > max(FORGIVEN, self.share * seen):
            last = faults[-1]
            raise DataError(
                f"{self.count} unreadable samples of {seen}, the last {last.where} ({last.reason}); all are in "
                f"{self.path}: mend the shards, or raise max_bad_share"
            )
