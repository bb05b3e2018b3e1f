"""Loads the batches of a training from any step on, in the order that the seed decides; threads or, for a GPU, worker
processes prepare them ahead.

The batches do not depend on the number of these, on how far they read ahead, or on whether decoded images are kept in
memory: a sample's position, its random draws and its replacement are functions of the seed.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline import launcher
from pipeline.data import order
from pipeline.data.cropper import STAGES, Cropper, Report
from pipeline.data.faults import BadSampleLog, await_batch
from pipeline.data.images import MEMORY, DecodedImages, fits
from pipeline.data.pinned import PinnedBuffers
from pipeline.data.shards import Shards
from pipeline.data.worker import Workers
from pipeline.views.transforms import ViewTransform

T = TypeVar("T")

AHEAD = 3
"""Micro-batches prepared beyond the one in use."""
PLANNED = 4096
"""Positions whose sample ids are computed at once, since a call costs as much as some thousand of them."""
CHUNK = 32
"""Images of one task of the pool; random numbers are drawn for all of them at once."""
DECODED = 256
"""Images that one task decodes into memory."""


class MicroBatch(NamedTuple):
    """A rank's share of a micro-batch, on the device: views, float32 [B, ...] each, and sample ids, int64 [B]."""

    views: tuple[Tensor, ...]
    ids: Tensor


@dataclass(frozen=True)
class PendingBatch:
    """A micro-batch in preparation. ``tasks``: one for each CHUNK of its rows. ``finished``: the micro-batch, and the
    event that the training's stream must wait for (None on a CPU)."""

    epoch: int
    tasks: list[Future[Report]]
    finished: Future[tuple[MicroBatch, torch.Event | None]]


class Loader:
    """This rank's batches of a training of ``total_steps``. ``limit``: only the ids below it are used (packing has
    shuffled them). ``window``: shards in use at a time (see `order`). ``bad_samples``: the log of unreadable samples.
    ``memory``: bytes of decoded images that may be kept. Raises ConfigError where the batch cannot be divided among
    ranks and micro-batches, DataError where unreadable samples are too many (see `faults`).

    On a CPU threads read, decode, crop and compute the views. For a GPU, or with ``processes``, worker processes do
    so; where the images are too many to be kept decoded, they leave the views to the device, whose rounding these then
    have. They write to pinned memory, which a thread brings to the device ahead of the training, on a CUDA stream of
    its own."""

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
        processes: bool = False,
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
        self.processes = processes or self.device.type == "cuda"
        self.pool = ThreadPoolExecutor(self.threads, "loader")
        self.of_thread = threading.local()
        self.workers: Workers | None = None
        self.finisher = ThreadPoolExecutor(1, "finish")
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.buffers: PinnedBuffers | None = None
        self.shape = self._room(memory)
        self.decoded: DecodedImages | None = None

    def steps(self, start: int) -> Iterator[tuple[int, int, list[MicroBatch]]]:
        """(step, epoch, this rank's micro-batches) from step ``start`` to the last. No sample of an earlier step is
        read."""
        bad_samples = BadSampleLog(self.bad_samples, start, self.max_bad_share, self.shards)
        self._prepare(start)
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

    def _prepare(self, start: int) -> None:
        """Starts the workers, and decodes all images where they are kept. Does nothing at a second call."""
        if self.decoded is not None or self.workers is not None:
            return
        seen = (self.total - start) * self.batch_sampler.batch // self.batch_sampler.size
        if self.shape is not None and seen > self.n:
            self.decoded = DecodedImages(self.n, self.shape)
        if self.processes:
            # Where nothing is left to decode, workers have time for the views too; else the device is the quicker.
            made = self.transform.crop_shapes if self.shape is None else self.transform.view_shapes
            dtype = torch.uint8 if self.shape is None else torch.float32
            shapes = [(self.batch_sampler.share, *shape) for shape in made]
            # One for every micro-batch in preparation, and for those on their way to the device.
            self.buffers = PinnedBuffers(self.device, shapes, dtype, AHEAD + 2 * self.batch_sampler.accumulate)
            self.workers = Workers(self._cropper(), self.buffers.buffers, self.threads)
        if self.decoded is not None:
            parts = [range(at, min(at + DECODED, self.n)) for at in range(0, self.n, DECODED)]
            list(self.pool.map(self._decode, parts))

    def _room(self, memory: int) -> tuple[int, int, int] | None:
        """The shape (H, W, C) of the images, if they have one and all of them fit into ``memory``."""
        height, width = self.shards.manifest["height"], self.shards.manifest["width"]
        channels = self.transform.image.channels
        if height is None or not fits(self.n, channels, height, width, memory):
            return None
        return height, width, channels

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
        if self.workers is not None:
            self.workers.close()
        if self.buffers is not None:
            self.buffers.close()

    def _start(self, step: int, epoch: int, positions: np.ndarray, ids: np.ndarray) -> PendingBatch:
        """Starts the tasks that fill a micro-batch, each some of its rows."""
        chunks = [slice(at, min(at + CHUNK, len(ids))) for at in range(0, len(ids), CHUNK)]
        if self.workers is not None and self.buffers is not None:
            buffer = self.buffers.take()
            tasks = [self.pool.submit(self.workers.fill, buffer, c, step, epoch, positions[c], ids[c]) for c in chunks]
            return PendingBatch(epoch, tasks, self.finisher.submit(self._finish, buffer, epoch, ids, tasks))
        views = tuple(torch.empty(len(ids), *shape) for shape in self.transform.view_shapes)
        tasks = [
            self.pool.submit(self._fill, tuple(v[c] for v in views), step, epoch, positions[c], ids[c]) for c in chunks
        ]
        return PendingBatch(epoch, tasks, done((MicroBatch(views, torch.from_numpy(ids)), None)))

    def _cropper(self) -> Cropper:
        """This thread's cropper."""
        if not hasattr(self.of_thread, "cropper"):
            self.of_thread.cropper = Cropper(self.shards, self.transform, self.sampler, self.decoded)
        return self.of_thread.cropper

    def _fill(self, views: tuple[Tensor, ...], *rows: Any) -> Report:
        return self._cropper().fill(*rows, out=views)

    def _decode(self, ids: range) -> None:
        (self.workers or self._cropper()).decode(ids)

    def _micro_batch(self, batch: PendingBatch) -> MicroBatch:
        """The micro-batch of finished tasks, which the device's current stream may use."""
        begun = time.perf_counter()
        micro_batch, event = await_batch(batch.finished)
        self.seconds["wait"] += time.perf_counter() - begun
        if event is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(event)
            for tensor in (*micro_batch.views, micro_batch.ids):  # allocated on one stream, used on another
                tensor.record_stream(current)
        return micro_batch

    def _finish(
        self, buffer: int, epoch: int, ids: np.ndarray, tasks: list[Future[Report]]
    ) -> tuple[MicroBatch, torch.Event | None]:
        """Brings a micro-batch to the device, and computes its views there if workers have not. Returns the event that
        the training's stream must wait for, None on a CPU."""
        assert self.buffers is not None
        for task in tasks:
            task.result()
        with torch.cuda.stream(self.stream):  # does nothing where the stream is None
            begun = time.perf_counter()
            views = self.buffers.send(buffer)
            sent = time.perf_counter()
            if self.shape is None:
                views = tuple(self.transform.views(views, epoch, ids))
            numbers = torch.from_numpy(ids).to(self.device)
            self.seconds["transfer"] += sent - begun
            self.seconds["augment"] += time.perf_counter() - sent
            return MicroBatch(views, numbers), self.stream.record_event() if self.stream else None


def done(result: T) -> Future[T]:
    """A future that has its result."""
    future: Future[T] = Future()
    future.set_result(result)
    return future


def cores(threads: int, device: torch.device) -> int:
    """Threads of a loader: ``threads`` on a CPU; for a GPU, this process's share of the machine's cores, which it
    divides with the other ranks there."""
    if device.type == "cpu":
        return max(1, threads)
    return max(1, threads, len(os.sched_getaffinity(0)) // max(1, int(launcher.number("LOCAL_WORLD_SIZE", 1))))
