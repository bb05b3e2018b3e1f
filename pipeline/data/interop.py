"""Packed or indexed shards for training code of one's own: a torch IterableDataset and a Ray Data source.

The shards are plain WebDataset tars, which `webdataset` and `ray.data.read_webdataset` read as well.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch.utils.data

from pipeline.data.order import Sampler
from pipeline.data.reader import BadSample, read_many
from pipeline.data.shards import Shards
from pipeline.errors import DataError

BLOCK = 256
"""Samples of one read."""


class Stream(torch.utils.data.IterableDataset):
    """The samples of one epoch as {"id", "key", "image", "label"}, where the image is its file's bytes. (seed, epoch)
    decides the order, and rank r of ``size`` gets positions r, r + size, ... of it, from ``start`` on: a checkpoint
    needs to hold (seed, epoch, position) only. The workers of a DataLoader share a rank's blocks of samples; with
    more than one worker its order within the rank is not exact.

    Raises DataError at a sample that cannot be read; nothing replaces it.
    """

    def __init__(
        self,
        location: Path | str,
        split: str = "train",
        *,
        seed: int = 0,
        epoch: int = 0,
        start: int = 0,
        rank: int = 0,
        size: int = 1,
        window: int | None = None,
    ):
        self.shards = Shards.open(location, split)
        self.seed, self.epoch, self.start, self.rank, self.size, self.window = seed, epoch, start, rank, size, window

    def __len__(self) -> int:
        return len(self.positions())

    def positions(self) -> range:
        """This rank's positions in the epoch."""
        return range(self.start + (self.rank - self.start) % self.size, self.shards.n, self.size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        every, which = (worker.num_workers, worker.id) if worker else (1, 0)
        order, mine = Sampler(self.shards.counts, self.seed, self.window), self.positions()
        for at in range(which * BLOCK, len(mine), every * BLOCK):
            yield from samples(self.shards, order.ids(self.epoch, np.array(mine[at : at + BLOCK])))


def samples(shards: Shards, ids: np.ndarray) -> Iterator[dict[str, Any]]:
    """The samples of ``ids``, as `Stream` has them. Raises DataError for one that cannot be read."""
    for sample, data in zip(ids.tolist(), read_many(shards, ids), strict=True):
        if isinstance(data, BadSample):
            raise DataError(f"{shards.where(sample)}: {data}; `pipeline check --quarantine` leaves it out")
        label = int(shards.row(sample)[1]["label"])
        yield {"id": sample, "key": shards.key(sample), "image": data, "label": label}


def datasource(location: Path | str, split: str = "train") -> Any:
    """The samples of a split in the order of their ids, for ``ray.data.read_datasource``; rows as `Stream` has them.
    A relative path is resolved here: Ray's workers may have another working directory, as they do under `uv run`."""
    import pyarrow
    from ray.data import Datasource
    from ray.data.block import BlockMetadata
    from ray.data.datasource import ReadTask

    if "://" not in str(location):
        location = Path(location).expanduser().resolve()
    shards = Shards.open(location, split)

    def tables(first: int, last: int) -> Iterable[pyarrow.Table]:
        block_shards = Shards.open(location, split, check=False)
        for at in range(first, last, BLOCK):
            yield pyarrow.Table.from_pylist(list(samples(block_shards, np.arange(at, min(at + BLOCK, last)))))

    class Packed(Datasource):
        def estimate_inmemory_data_size(self) -> int:
            return int(shards.shards["bytes"].sum())

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
            edges = np.linspace(0, shards.n, min(parallelism, shards.n) + 1).astype(int).tolist()
            size = self.estimate_inmemory_data_size() // max(1, len(edges) - 1)
            return [
                ReadTask(
                    lambda a=a, b=b: tables(a, b),
                    BlockMetadata(num_rows=b - a, size_bytes=size, input_files=None, exec_stats=None),
                )
                for a, b in pairwise(edges)
            ]

    return Packed()
