"""Loads the batches of a training from any step on, in the order that the seed decides; threads prepare them ahead.

The batches do not depend on the number of threads, on how far they read ahead, or on whether decoded images are kept
in memory: a sample's position, its random draws and its replacement are functions of the seed.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline import bottleneck, launcher
from pipeline.data import order
from pipeline.data.faults import ATTEMPTS, BadSampleLog, Fault, await_batch, fault
from pipeline.data.images import MEMORY, DecodedImages, fits, pixels
from pipeline.data.pinned import PinnedBuffers
from pipeline.data.reader import BadSample, read, read_many
from pipeline.data.shards import Shards
from pipeline.errors import DataError
from pipeline.views.decode import Scratch
from pipeline.views.transforms import ViewTransform

T = TypeVar("T")

AHEAD = 3
"""Micro-batches prepared beyond the one in use."""
PLANNED = 4096
"""Positions whose sample ids are computed at once, since a call costs as much as some thousand of them."""
CHUNK = 32
"""Images of one task of the pool; random numbers are drawn for all of them at once."""
STAGES: tuple[str, ...] = (*bottleneck.STAGES, "wait")


class MicroBatch(NamedTuple):
    """A rank's share of a micro-batch, on the device: views, float32 [B, ...] each, and sample ids, int64 [B]."""

    views: tuple[Tensor, ...]
    ids: Tensor


class Report(NamedTuple):
    """What a task reports: the samples that it could not read, and the seconds of each of its stages."""

    faults: list[Fault]
    seconds: dict[str, float]

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Adds the duration of the block to a stage's seconds."""
        begun = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - begun


@dataclass(frozen=True)
class PendingBatch:
    """A micro-batch that threads are filling. ``rows``: the views, where the model runs on the CPU; else the crops,
    uint8, from which ``views`` are computed on the device. ``tasks``: one for each CHUNK of its rows."""

    epoch: int
    ids: np.ndarray
    rows: tuple[Tensor, ...]
    tasks: list[Future[Report]]
    views: Future[tuple[MicroBatch, torch.Event | None]] | None = None


class Loader:
    """This rank's batches of a training of ``total_steps``. ``limit``: only the ids below it are used (packing has
    shuffled them). ``window``: shards in use at a time (see `order`). ``bad_samples``: the log of unreadable samples.
    ``memory``: bytes of decoded images that may be kept. Raises ConfigError where the batch cannot be divided among
    ranks and micro-batches, DataError where unreadable samples are too many (see `faults`).

    Threads read, decode and crop; on a CPU they also compute the views. For a GPU they fill pinned memory, which
    another thread copies to the device and turns into views, ahead of the training and on a CUDA stream of its own."""

    def __init__(
        self,
        shards: Shards,
        transform: ViewTransform,
        *,
        batch: int,
        seed: int,
        total_steps: int,
        accumulate: int = 1,
        rank: int = 0,
        size: int = 1,
        threads: int = 1,
        device: torch.device | str = "cpu",
        limit: int | None = None,
        window: int | None = None,
        bad_samples: Path | None = None,
        max_bad_share: float = 0.001,
        memory: int = MEMORY,
    ):
        self.shards, self.transform, self.seed, self.total = shards, transform, seed, total_steps
        self.n = min(shards.n, limit or shards.n)
        self.sampler = order.Sampler(np.diff(np.minimum(shards.starts, self.n)), seed, window)
        self.batch_sampler = order.BatchSampler(self.n, batch, accumulate, rank, size)
        self.steps_per_epoch = self.batch_sampler.steps_per_epoch
        self.device = torch.device(device)
        self.bad_samples, self.max_bad_share = bad_samples, max_bad_share
        self.threads = cores(threads, self.device)
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self.bad = 0
        self.pool = ThreadPoolExecutor(self.threads, "loader")
        self.scratch = threading.local()
        self.buffers = PinnedBuffers(self.device)
        self.finisher = ThreadPoolExecutor(1, "finish")
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.memory = memory
        self.decoded: DecodedImages | None = None

    def steps(self, start: int) -> Iterator[tuple[int, int, list[MicroBatch]]]:
        """(step, epoch, this rank's micro-batches) from step ``start`` to the last. No sample of an earlier step is
        read."""
        bad_samples = BadSampleLog(self.bad_samples, start, self.max_bad_share, self.shards)
        self.decode_all(start)
        pending: deque[list[PendingBatch]] = deque()
        shares, ahead = self.shares(start), start
        for step in range(start, self.total):
            while ahead < self.total and (ahead <= step or sum(len(batches) for batches in pending) < AHEAD):
                epoch, micro_batches = next(shares)
                pending.append([self._start(ahead, epoch, *share) for share in micro_batches])
                ahead += 1
            batches = pending.popleft()
            self._collect([task for batch in batches for task in batch.tasks], step, bad_samples)
            yield step, batches[0].epoch, [self._micro_batch(batch) for batch in batches]

    def _collect(self, tasks: list[Future[Report]], step: int, bad_samples: BadSampleLog) -> None:
        """Waits for a step's tasks, logs the samples that they could not read and adds up their seconds."""
        begun = time.perf_counter()
        reports = [await_batch(task) for task in tasks]
        self.seconds["wait"] += time.perf_counter() - begun
        for report in reports:
            for stage, seconds in report.seconds.items():
                self.seconds[stage] += seconds
        share = self.batch_sampler.batch // self.batch_sampler.size
        bad_samples.record([fault for report in reports for fault in report.faults], (step + 1) * share, share)
        self.bad = bad_samples.count

    def shares(self, start: int) -> Iterator[tuple[int, list[tuple[np.ndarray, np.ndarray]]]]:
        """Epoch of every step from ``start`` on, and this rank's (positions, ids) of its micro-batches."""
        group = max(1, PLANNED * self.batch_sampler.size // self.batch_sampler.batch)
        for first in range(start, self.total, group):
            steps = map(self.batch_sampler.at, range(first, min(first + group, self.total)))
            for epoch, of_epoch in groupby(steps, lambda step: step[0]):
                positions = np.array([micro_batches for _, micro_batches in of_epoch])
                ids = self.sampler.ids(epoch, positions.ravel()).reshape(positions.shape)
                for step_positions, step_ids in zip(positions, ids, strict=True):
                    yield epoch, list(zip(step_positions, step_ids, strict=True))

    def close(self) -> None:
        for pool in (self.pool, self.finisher):
            pool.shutdown(wait=False, cancel_futures=True)

    def _start(self, step: int, epoch: int, positions: np.ndarray, ids: np.ndarray) -> PendingBatch:
        """Starts the tasks that fill a micro-batch, each some of its rows."""
        count, on_cpu = len(ids), self.device.type == "cpu"
        if on_cpu:
            rows = tuple(torch.empty(count, *shape) for shape in self.transform.view_shapes)
        else:
            rows = self.buffers.take([(count, *shape) for shape in self.transform.crop_shapes])
        chunks = [slice(at, min(at + CHUNK, count)) for at in range(0, count, CHUNK)]
        tasks = [
            self.pool.submit(self._fill, step, epoch, positions[chunk], ids[chunk], tuple(r[chunk] for r in rows))
            for chunk in chunks
        ]
        batch = PendingBatch(epoch, ids, rows, tasks)
        return batch if on_cpu else replace(batch, views=self.finisher.submit(self._finish, batch))

    def _fill(self, step: int, epoch: int, positions: np.ndarray, ids: np.ndarray, rows: tuple[Tensor, ...]) -> Report:
        """Fills rows with the crops of samples, or on a CPU with their views. Replaces unreadable samples, and their
        entries of ``ids``."""
        report = Report([], dict.fromkeys(STAGES, 0.0))
        crops = self._crops(len(ids)) if self.device.type == "cpu" else rows
        if self.decoded is not None and not self.decoded.broken[ids].any():
            params = self.transform.params(epoch, ids)
            with report.time("crop"):
                self.transform.crop_rows(self.decoded.images, ids, params, crops)
        else:
            self._crop_each(step, epoch, positions, ids, crops, report)
        if self.device.type == "cpu":
            with report.time("augment"):
                self.transform.views(crops, epoch, ids, rows)
        return report

    def _crop_each(
        self, step: int, epoch: int, positions: np.ndarray, ids: np.ndarray, crops: tuple[Tensor, ...], report: Report
    ) -> None:
        """Reads, decodes and crops samples one by one."""
        params = self.transform.params(epoch, ids)
        with report.time("read"):
            files = read_many(self.shards, ids) if self.decoded is None else [None] * len(ids)
        for i, position in enumerate(positions.tolist()):
            due = int(ids[i])
            ids[i], image = self._readable(step, epoch, position, due, files[i], report)
            out = tuple(c[i] for c in crops)
            with report.time("crop"):
                if ids[i] == due:
                    self.transform.crop(image, params, i, out)
                else:
                    self.transform.crop(image, self.transform.params(epoch, ids[i : i + 1]), 0, out)

    def _of_thread(self, name: str, make: Callable[[], T]) -> T:
        """An object that this thread makes once by ``make`` and then reuses."""
        if not hasattr(self.scratch, name):
            setattr(self.scratch, name, make())
        return getattr(self.scratch, name)

    def _crops(self, count: int) -> tuple[Tensor, ...]:
        """This thread's buffers for the crops of a task."""
        shapes = self.transform.crop_shapes
        room = self._of_thread("crops", lambda: tuple(torch.empty(CHUNK, *s, dtype=torch.uint8) for s in shapes))
        return tuple(c[:count] for c in room)

    def _micro_batch(self, batch: PendingBatch) -> MicroBatch:
        """The micro-batch of finished tasks, which the device's current stream may use."""
        if batch.views is None:
            return MicroBatch(batch.rows, torch.from_numpy(batch.ids))
        begun = time.perf_counter()
        micro_batch, event = await_batch(batch.views)
        self.seconds["wait"] += time.perf_counter() - begun
        if event is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(event)
            for tensor in (*micro_batch.views, micro_batch.ids):  # allocated on one stream, used on another
                tensor.record_stream(current)
        return micro_batch

    def _finish(self, batch: PendingBatch) -> tuple[MicroBatch, torch.Event | None]:
        """Computes the views of a micro-batch on the device. Returns the event that the training's stream must wait
        for, None on a CPU."""
        for task in batch.tasks:
            task.result()
        with torch.cuda.stream(self.stream):  # does nothing where the stream is None
            begun = time.perf_counter()
            crops = self.buffers.send(batch.rows)
            sent = time.perf_counter()
            views = tuple(self.transform.views(crops, batch.epoch, batch.ids))
            ids = torch.from_numpy(batch.ids).to(self.device)
            self.seconds["transfer"] += sent - begun
            self.seconds["augment"] += time.perf_counter() - sent
            return MicroBatch(views, ids), self.stream.record_event() if self.stream else None

    def _readable(
        self, step: int, epoch: int, position: int, sample: int, file: bytes | BadSample | None, report: Report
    ) -> tuple[int, Tensor]:
        """The id and image of ``sample``, or of its first replacement that can be read. ``file``: the sample's bytes,
        if they were read already. Raises DataError where no replacement can be read."""
        for attempt in range(1, ATTEMPTS + 2):
            try:
                return sample, self._image(sample, report, file)
            except BadSample as error:
                other = self.sampler.replacement(epoch, position, attempt)
                report.faults.append(
                    fault(self.shards, sample, error, step=step, epoch=epoch, position=position, replacement=other)
                )
                sample, file = other, None
        where = f"position {position} of epoch {epoch}"
        raise DataError(f"{where}: {ATTEMPTS} replacements unreadable too; check the shards")

    def _image(self, sample: int, report: Report, file: bytes | BadSample | None = None) -> Tensor:
        """One decoded image, uint8 [C, H, W]; this thread's next call overwrites it. Raises BadSample."""
        if self.decoded is not None and not self.decoded.broken[sample]:
            return self.decoded.images[sample].permute(2, 0, 1)
        if isinstance(file, BadSample):
            raise file
        with report.time("read"):
            data = read(self.shards, sample) if file is None else file
        with report.time("decode"):
            about = self.transform.image
            return pixels(data, about.channels, about.exif_orientation, self._of_thread("pixels", Scratch))

    def decode_all(self, start: int) -> None:
        """Decodes all images into memory, if they have one size, fit there, and will be used more than once."""
        height, width = self.shards.manifest["height"], self.shards.manifest["width"]
        channels = self.transform.image.channels
        seen = (self.total - start) * self.batch_sampler.batch // self.batch_sampler.size
        if self.decoded is not None or height is None or seen <= self.n:
            return
        if not fits(self.n, channels, height, width, self.memory):
            return
        report = Report([], dict.fromkeys(STAGES, 0.0))
        self.decoded = DecodedImages.decode(
            self.n, (height, width, channels), lambda sample: self._image(sample, report), self.pool
        )


def cores(threads: int, device: torch.device) -> int:
    """Threads of a loader: ``threads`` on a CPU; for a GPU, this process's share of the machine's cores, which it
    divides with the other ranks there."""
    if device.type == "cpu":
        return max(1, threads)
    return max(1, threads, len(os.sched_getaffinity(0)) // max(1, int(launcher.number("LOCAL_WORLD_SIZE", 1))))
