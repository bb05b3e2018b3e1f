"""Which sample stands at which position, and which positions are whose: pure functions, O(1) memory in the data."""

from dataclasses import dataclass

import numpy as np

from pipeline import keyed
from pipeline.errors import ConfigError


def ids(seed: int, epoch: int, positions: np.ndarray, n: int) -> np.ndarray:
    """Sample ids at positions of an epoch: one keyed permutation of n -> int64, same shape."""
    return keyed.permute(positions, n, seed, epoch, "order")


@dataclass(frozen=True)
class Plan:
    """Batch t of an epoch is positions [tG, (t+1)G); its micro-batch a, [tG + aG/A, ...); of that every rank takes its
    contiguous share, so that the shares joined in rank order are the same for any number of ranks."""

    n: int
    batch: int
    accumulate: int = 1
    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if self.batch % (self.accumulate * self.size):
            raise ConfigError(
                f"batch {self.batch} cannot be shared by {self.size} ranks x {self.accumulate} micro-batches: "
                f"make it a multiple of {self.accumulate * self.size}"
            )
        if self.batch > self.n:
            raise ConfigError(f"batch {self.batch} is more than the {self.n} samples: make it smaller")

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches; the rest is left out, another rest each epoch."""
        return self.n // self.batch

    def at(self, step: int) -> tuple[int, list[np.ndarray]]:
        """Epoch of a step, and this rank's positions of each micro-batch."""
        epoch, t = divmod(step, self.steps_per_epoch)
        part = self.batch // self.accumulate
        share = part // self.size
        starts = t * self.batch + np.arange(self.accumulate) * part + self.rank * share
        return epoch, [np.arange(start, start + share) for start in starts]
