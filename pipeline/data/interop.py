"""The streaming for others: a torch IterableDataset and a Ray Data source over packed or indexed shards.

The shards themselves are plain WebDataset tars: `webdataset` and `ray.data.read_webdataset` read them without us.
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
"""Samples that are read at once."""


class Stream(torch.utils.data.IterableDataset):
    """The samples of one epoch in the order that (seed, epoch) decides, as {"id", "key", "image", "label"}, image the
    file's bytes. Rank r of ``size`` gets positions r, r + size, ...: joined in turn, the same for any number of ranks.
    ``start``: the first position: (seed, epoch, position) is all there is to save. The workers of a DataLoader share
    the blocks of a rank; its order is exact with one worker or none.

    Raises DataError at a sample that cannot be read: which one takes its place is the training's to decide.
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
        """The positions of this rank."""
        return range(self.start + (self.rank - self.start) % self.size, self.shards.n, self.size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        every, which = (worker.num_workers, worker.id) if worker else (1, 0)
        order, mine = Sampler(self.shards.counts, self.seed, self.window), self.positions()
        for at in range(which * BLOCK, len(mine), every * BLOCK):
            yield from samples(self.shards, order.ids(self.epoch, np.array(mine[at : at + BLOCK])))


def samples(shards: Shards, ids: np.ndarray) -> Iterator[dict[str, Any]]:
    """Samples by id, as rows."""
    for sample, data in zip(ids.tolist(), read_many(shards, ids), strict=True):
        if isinstance(data, BadSample):
            raise DataError(f"{shards.where(sample)}: {data}; `pipeline check --quarantine` leaves it out")
        label = int(shards.row(sample)[1]["label"])
        yield {"id": sample, "key": shards.key(sample), "image": data, "label": label}


def datasource(location: Path | str, split: str = "train") -> Any:
    """For ``ray.data.read_datasource``: the samples of a split in id order, rows as `Stream` has them. A path that is
    relative is so to this process: Ray's workers may stand elsewhere, as they do under `uv run`."""
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
