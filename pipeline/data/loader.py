"""Batches of any step, in the order that the seed decides, prepared ahead by threads.

Nothing here depends on how many threads there are, how far ahead they read, or whether the decoded images are held in
memory: a sample's place, its draws and its replacement are functions of the seed.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline import launcher
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
"""Samples whose ids are worked out at once: a call costs as much as some thousand of them."""
CHUNK = 32
"""Images of one task of the pool: numbers are drawn for all of them at once."""
STAGES: tuple[str, ...] = ("read", "decode", "crop", "transfer", "augment", "wait")


class MicroBatch(NamedTuple):
    """A rank's share of a micro-batch, on the device: float32 views [B, ...] and ids, int64 [B]."""

    views: tuple[Tensor, ...]
    ids: Tensor


class Part(NamedTuple):
    """What a task did besides filling its rows: what went wrong, and its seconds by stage."""

    faults: list[Fault]
    seconds: dict[str, float]


@dataclass(frozen=True)
class PendingBatch:
    """A micro-batch on its way. ``made``: its finished views on a CPU; its crops, uint8, for another device, where
    ``views`` then come from."""

    epoch: int
    ids: np.ndarray
    made: tuple[Tensor, ...]
    parts: list[Future[Part]]
    views: Future[tuple[MicroBatch, torch.Event | None]] | None = None


class Loader:
    """This rank's batches of a training of ``total_steps``. ``limit``: use only the first so many ids (packing has
    shuffled them). ``window``: shards in use at a time. ``bad_samples``: where unreadable samples are written down.
    Raises ConfigError where the batch cannot be shared out, DataError past ``max_bad_share`` unreadable samples.

    Threads read, decode and cut; on a CPU they also finish the views. For another device they fill pinned memory, and
    one more thread copies it there and finishes the views, ahead and on a stream of its own: what that waits for, no
    step waits for."""

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
        """(step, epoch, this rank's micro-batches) from step ``start`` to the last, reading nothing before it."""
        bad_samples = BadSampleLog(self.bad_samples, start, self.max_bad_share, self.shards)
        self.hold(start)
        pending: deque[list[PendingBatch]] = deque()
        planned, nextup = self.planned(start), start
        for step in range(start, self.total):
            while nextup < self.total and (nextup <= step or sum(len(c) for c in pending) < AHEAD):
                epoch, shares = next(planned)
                pending.append([self._start(nextup, epoch, *share) for share in shares])
                nextup += 1
            due = pending.popleft()
            begun = time.perf_counter()
            parts = [await_batch(part) for micro in due for part in micro.parts]
            self.seconds["wait"] += time.perf_counter() - begun
            for part in parts:
                for stage, seconds in part.seconds.items():
                    self.seconds[stage] += seconds
            share = self.batch_sampler.batch // self.batch_sampler.size
            bad_samples.record([f for p in parts for f in p.faults], (step + 1) * share, share)
            self.bad = bad_samples.count
            yield step, due[0].epoch, [self._loaded(micro) for micro in due]

    def planned(self, start: int) -> Iterator[tuple[int, list[tuple[np.ndarray, np.ndarray]]]]:
        """Epoch of every step from ``start`` on, and this rank's (positions, ids) of its micro-batches."""
        group = max(1, PLANNED * self.batch_sampler.size // self.batch_sampler.batch)
        for first in range(start, self.total, group):
            steps = map(self.batch_sampler.at, range(first, min(first + group, self.total)))
            for epoch, some in groupby(steps, lambda step: step[0]):
                shares = [positions for _, positions in some]
                ids = np.reshape(self.sampler.ids(epoch, np.ravel(shares)), np.shape(shares))
                for positions, theirs in zip(shares, ids, strict=True):
                    yield epoch, list(zip(positions, theirs, strict=True))

    def close(self) -> None:
        for pool in (self.pool, self.finisher):
            pool.shutdown(wait=False, cancel_futures=True)

    def _start(self, step: int, epoch: int, positions: np.ndarray, ids: np.ndarray) -> PendingBatch:
        """A micro-batch cut into tasks, each of which fills its rows."""
        count = len(ids)
        if self.device.type == "cpu":
            made = tuple(torch.empty(count, *shape) for shape in self.transform.view_shapes)
        else:
            made = self.buffers.take([(count, *shape) for shape in self.transform.crop_shapes])
        rows = [slice(at, min(at + CHUNK, count)) for at in range(0, count, CHUNK)]
        fill = self.pool.submit
        parts = [fill(self._fill, step, epoch, positions[r], ids[r], tuple(m[r] for m in made)) for r in rows]
        micro = PendingBatch(epoch, ids, made, parts)
        return micro if self.device.type == "cpu" else replace(micro, views=self.finisher.submit(self._finish, micro))

    def _fill(
        self, step: int, epoch: int, positions: np.ndarray, ids: np.ndarray, made: tuple[Tensor, ...]
    ) -> Part:
        """Samples in order, the unreadable replaced (in ``ids`` too), cut, and on a CPU finished, into ``made``."""
        part = Part([], dict.fromkeys(STAGES, 0.0))
        crops = made if self.device.type != "cpu" else self._crops(len(ids))
        params = self.transform.params(epoch, ids)
        begun = time.perf_counter()
        if self.decoded is not None and not self.decoded.broken[ids].any():
            self.transform.crop_rows(self.decoded.images, ids, params, crops)
            part.seconds["crop"] += time.perf_counter() - begun
            return self._coloured(epoch, ids, crops, made, part)
        files = read_many(self.shards, ids) if self.decoded is None else [None] * len(ids)
        part.seconds["read"] += time.perf_counter() - begun
        for i, position in enumerate(positions.tolist()):
            due = int(ids[i])
            ids[i], image = self._take(step, epoch, position, due, files[i], part)
            begun = time.perf_counter()
            out = tuple(c[i] for c in crops)
            if ids[i] == due:
                self.transform.crop(image, params, i, out)
            else:
                self.transform.crop(image, self.transform.params(epoch, ids[i : i + 1]), 0, out)
            part.seconds["crop"] += time.perf_counter() - begun
        return self._coloured(epoch, ids, crops, made, part)

    def _coloured(
        self, epoch: int, ids: np.ndarray, crops: tuple[Tensor, ...], made: tuple[Tensor, ...], part: Part
    ) -> Part:
        """A task's crops, finished into ``made`` on a CPU."""
        if self.device.type == "cpu":
            begun = time.perf_counter()
            self.transform.views(crops, epoch, ids, made)
            part.seconds["augment"] += time.perf_counter() - begun
        return part

    def _own(self, name: str, make: Callable[[], T]) -> T:
        """Memory that this thread uses again and again."""
        if not hasattr(self.scratch, name):
            setattr(self.scratch, name, make())
        return getattr(self.scratch, name)

    def _crops(self, count: int) -> tuple[Tensor, ...]:
        """This thread's room for the crops of a task."""
        shapes = self.transform.crop_shapes
        room = self._own("crops", lambda: tuple(torch.empty(CHUNK, *s, dtype=torch.uint8) for s in shapes))
        return tuple(c[:count] for c in room)

    def _loaded(self, micro: PendingBatch) -> MicroBatch:
        """A micro-batch whose parts are done, ready for the device's current stream."""
        if micro.views is None:
            return MicroBatch(micro.made, torch.from_numpy(micro.ids))
        begun = time.perf_counter()
        loaded, event = await_batch(micro.views)
        self.seconds["wait"] += time.perf_counter() - begun
        if event is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(event)
            for tensor in (*loaded.views, loaded.ids):  # allocated on the one stream, used on the other
                tensor.record_stream(current)
        return loaded

    def _finish(self, micro: PendingBatch) -> tuple[MicroBatch, torch.Event | None]:
        """The views of a micro-batch, made on the device, and what its stream has to wait for."""
        for part in micro.parts:
            part.result()
        with torch.cuda.stream(self.stream):  # none: nothing happens
            begun = time.perf_counter()
            crops = self.buffers.send(micro.made)
            sent = time.perf_counter()
            views = tuple(self.transform.views(crops, micro.epoch, micro.ids))
            ids = torch.from_numpy(micro.ids).to(self.device)
            self.seconds["transfer"] += sent - begun
            self.seconds["augment"] += time.perf_counter() - sent
            return MicroBatch(views, ids), self.stream.record_event() if self.stream else None

    def _take(
        self, step: int, epoch: int, position: int, sample: int, file: bytes | BadSample | None, part: Part
    ) -> tuple[int, Tensor]:
        """The image due at a position (its file, if that was read), or the first readable one of those that may take
        its place."""
        for attempt in range(1, ATTEMPTS + 2):
            try:
                return sample, self._image(sample, part.seconds, file)
            except BadSample as error:
                other = self.sampler.replacement(epoch, position, attempt)
                part.faults.append(
                    fault(self.shards, sample, error, step=step, epoch=epoch, position=position, replacement=other)
                )
                sample, file = other, None
        place = f"position {position} of epoch {epoch}"
        raise DataError(f"{place}: {ATTEMPTS} replacements unreadable too; check the shards")

    def _image(self, sample: int, seconds: dict[str, float], file: bytes | BadSample | None = None) -> Tensor:
        """One decoded image, uint8 [C, H, W], until this thread's next. Raises BadSample."""
        if self.decoded is not None and not self.decoded.broken[sample]:
            return self.decoded.images[sample].permute(2, 0, 1)
        begun = time.perf_counter()
        data = read(self.shards, sample) if file is None else file
        if isinstance(data, BadSample):
            raise data
        read_at = time.perf_counter()
        about = self.transform.image
        image = pixels(data, about.channels, about.exif_orientation, self._own("pixels", Scratch))
        seconds["read"] += read_at - begun
        seconds["decode"] += time.perf_counter() - read_at
        return image

    def hold(self, start: int) -> None:
        """Decodes all images once, where they are of one size, fit, and will be seen more than once."""
        height, width = self.shards.manifest["height"], self.shards.manifest["width"]
        channels = self.transform.image.channels
        seen = (self.total - start) * self.batch_sampler.batch // self.batch_sampler.size
        if self.decoded is not None or height is None or seen <= self.n:
            return
        if not fits(self.n, channels, height, width, self.memory):
            return
        seconds = dict.fromkeys(STAGES, 0.0)
        self.decoded = DecodedImages.decode(
            self.n, (height, width, channels), lambda sample: self._image(sample, seconds), self.pool
        )


def cores(threads: int, device: torch.device) -> int:
    """Threads of a loader: those asked for; where another device computes, all cores that this process may use and
    does not share with other ranks of its machine."""
    if device.type == "cpu":
        return max(1, threads)
    return max(1, threads, len(os.sched_getaffinity(0)) // max(1, int(launcher.number("LOCAL_WORLD_SIZE", 1))))
