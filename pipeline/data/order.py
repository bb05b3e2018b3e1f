"""The order of the samples in each epoch, and each rank's positions in it: pure functions of the seed.

Without a window an epoch is one keyed permutation of the n samples, in O(1) memory. With a window of W shards, for
shards that are slow to reach, only W shards are in use at any time, and every batch mixes samples of all of them:

    1. The S shards are put in a keyed order.
    2. Each is permuted inside and cut into W slices; slice j of the shard at rank i goes to bin (i + j) mod S, so that
       a bin holds one slice of each of W consecutive shards.
    3. The bins follow each other, each permuted inside.

From one bin to the next one shard is replaced by another; W - 1 shards are opened twice, since the bins wrap around.
Both orders are exact permutations of any number of samples in shards of any sizes; they have an inverse, and are
evaluated at any position without the positions before it.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from pipeline import keyed
from pipeline.errors import ConfigError


class Bins(NamedTuple):
    """The bins of one epoch: the shard at each rank of the shards' order, the rank of each shard, and the position
    at which each bin starts."""

    shards: np.ndarray
    ranks: np.ndarray
    starts: np.ndarray


class Sampler:
    """The order of the samples in every epoch. ``counts``: samples in each shard, int [S]; ``window``: shards in use
    at a time (None: all)."""

    def __init__(self, counts: np.ndarray, seed: int, window: int | None = None):
        counts = np.asarray(counts, np.int64)
        self.seed, self.n = seed, int(counts.sum())
        self.counts = counts[counts > 0]  # an empty shard has no ids
        self.window = window if window and window < len(self.counts) else None
        if self.window:
            self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        self.bins = lru_cache(2)(self._bins)

    def __reduce__(self) -> tuple:
        return Sampler, (self.counts, self.seed, self.window)

    def ids(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """The sample ids at positions of an epoch -> int64, same shape."""
        if not self.window:
            return keyed.permute(positions, self.n, self.seed, epoch, "order")
        bins, positions = self.bins(epoch), np.asarray(positions, np.int64)
        k = np.searchsorted(bins.starts, positions, "right") - 1
        size = bins.starts[k + 1] - bins.starts[k]
        return self._samples(epoch, k, keyed.permute(positions - bins.starts[k], size, self.seed, epoch, "bin", k))

    def positions(self, epoch: int, ids: np.ndarray) -> np.ndarray:
        """The positions of sample ids in an epoch, int64, same shape: the inverse of `ids`."""
        if not self.window:
            return keyed.unpermute(ids, self.n, self.seed, epoch, "order")
        bins, ids, w = self.bins(epoch), np.asarray(ids, np.int64), self.window
        shard = np.searchsorted(self.starts, ids, "right") - 1
        m = self.counts[shard]
        rank = keyed.unpermute(ids - self.starts[shard], m, self.seed, epoch, "inner", shard)
        j = ((rank + 1) * w - 1) // m
        k = (bins.ranks[shard] + j) % len(self.counts)
        distinct, row = np.unique(k, return_inverse=True)
        ends, _ = self._slices(bins, distinct)
        before = np.where(j > 0, ends[row, j - 1], 0)
        at = before + rank - m * j // w
        size = bins.starts[k + 1] - bins.starts[k]
        return bins.starts[k] + keyed.unpermute(at, size, self.seed, epoch, "bin", k)

    def replacement(self, epoch: int, position: int, attempt: int) -> int:
        """The id that replaces an unreadable sample at a position, for attempts 1, 2, ...: any id of the set, or with
        a window one of the same bin, whose shards are in use already."""
        if not self.window:
            return int(keyed.permute(np.array([position]), self.n, self.seed, epoch, "replace", attempt)[0])
        bins = self.bins(epoch)
        k = np.searchsorted(bins.starts, [position], "right") - 1
        size = bins.starts[k + 1] - bins.starts[k]
        at = keyed.permute(position - bins.starts[k], size, self.seed, epoch, "replace", attempt, k)
        return int(self._samples(epoch, k, at)[0])

    def _samples(self, epoch: int, k: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Ids of the ``at``-th samples of bins k."""
        bins, w = self.bins(epoch), self.window
        assert w
        distinct, row = np.unique(k, return_inverse=True)
        ends, shards = self._slices(bins, distinct)
        # One binary search for all bins: each row of slice ends is shifted above the row before it.
        lift = np.int64(ends.max(initial=0) + 1)
        j = np.searchsorted((ends + np.arange(len(ends))[:, None] * lift).ravel(), at + row * lift, "right") - row * w
        shard = shards[row, j]
        m = self.counts[shard]
        rank = m * j // w + at - np.where(j > 0, ends[row, j - 1], 0)
        return self.starts[shard] + keyed.permute(rank, m, self.seed, epoch, "inner", shard)

    def _slices(self, bins: Bins, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The end of every slice within each of the bins ``k``, and the shard of each slice: [len(k), W] both."""
        w = self.window
        assert w
        j = np.arange(w)
        shards = bins.shards[(k[:, None] - j) % len(self.counts)]
        m = self.counts[shards]
        return np.cumsum(m * (j + 1) // w - m * j // w, 1), shards

    def _bins(self, epoch: int) -> Bins:
        count, w = len(self.counts), self.window
        assert w
        shards = keyed.permute(np.arange(count), count, self.seed, epoch, "shard")
        ranks = np.empty_like(shards)
        ranks[shards] = np.arange(count)
        m = self.counts[shards]
        sizes, before, after, slices = (np.zeros(count, np.int64) for _ in range(4))  # in place: 1e5 shards in ms
        for j in range(w):
            np.floor_divide(np.multiply(m, j + 1, out=after), w, out=after)
            np.subtract(after, before, out=slices)
            sizes[j:] += slices[: count - j]
            sizes[:j] += slices[count - j :]
            before, after = after, before
        return Bins(shards, ranks, np.concatenate([[0], np.cumsum(sizes)]))


@dataclass(frozen=True)
class BatchSampler:
    """The positions of a step's samples on this rank. Batch t of an epoch is the positions [tG, (t+1)G), its
    micro-batch a the a-th of A equal parts of these, and a rank's share a contiguous part of that: concatenated in
    rank order, the shares are the same for any number of ranks."""

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
        """The whole batches in an epoch. The samples left over are not used; they are others in each epoch."""
        return self.n // self.batch

    @property
    def share(self) -> int:
        """The samples of a micro-batch on this rank."""
        return self.batch // self.accumulate // self.size

    def at(self, step: int) -> tuple[int, list[np.ndarray]]:
        """The epoch of a step, and this rank's positions for each of its micro-batches."""
        epoch, t = divmod(step, self.steps_per_epoch)
        part = self.batch // self.accumulate
        starts = t * self.batch + np.arange(self.accumulate) * part + self.rank * self.share
        return epoch, [np.arange(start, start + self.share) for start in starts]
