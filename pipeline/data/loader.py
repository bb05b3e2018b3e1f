"""Batches of any step, in the order that the seed decides, prepared ahead by threads.

Nothing here depends on how many threads there are, how far ahead they read, or whether the decoded images are held in
memory: a sample's place, its draws and its replacement are functions of the seed.
"""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.data import order
from pipeline.data.faults import ATTEMPTS, Fault, Ledger, await_batch, fault
from pipeline.data.index import Shards
from pipeline.data.reader import BadSample, read
from pipeline.errors import DataError
from pipeline.views.decode import decode
from pipeline.views.recipes import Recipe

HELD = 1 << 30
"""Bytes of decoded images kept in memory; a set that is larger, or of several sizes, is decoded again each epoch."""
AHEAD = 4
"""Micro-batches prepared beyond the one in use."""


class Loaded(NamedTuple):
    """A rank's share of a micro-batch, on the device: float32 views [B, ...] and ids, int64 [B]."""

    views: tuple[Tensor, ...]
    ids: Tensor


class Cut(NamedTuple):
    """The same before the device: uint8 crops [B, ...], ids int64 [B], the recipe's draws, what went wrong."""

    crops: tuple[Tensor, ...]
    ids: np.ndarray
    draws: Any
    faults: list[Fault]


class Feed:
    """This rank's batches of a training of ``total_steps``. ``limit``: use only the first so many ids (packing has
    shuffled them). ``window``: shards in use at a time. ``ledger``: where unreadable samples are written down.
    Raises ConfigError where the batch cannot be shared out, DataError past ``max_bad_share`` unreadable samples."""

    def __init__(
        self,
        shards: Shards,
        recipe: Recipe,
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
        ledger: Path | None = None,
        max_bad_share: float = 0.001,
    ):
        self.shards, self.recipe, self.seed, self.total = shards, recipe, seed, total_steps
        self.n = min(shards.n, limit or shards.n)
        self.order = order.Order(np.diff(np.minimum(shards.starts, self.n)), seed, window)
        self.plan = order.Plan(self.n, batch, accumulate, rank, size)
        self.steps_per_epoch = self.plan.steps_per_epoch
        self.device = torch.device(device)
        self.ledger, self.max_bad_share = ledger, max_bad_share
        self.threads = max(1, threads)
        self.seconds: dict[str, float] = dict.fromkeys(("read", "decode", "crop", "augment", "wait"), 0.0)
        self.bad = 0
        self.pool = ThreadPoolExecutor(self.threads, "feed")

    def steps(self, start: int) -> Iterator[tuple[int, int, list[Loaded]]]:
        """(step, epoch, this rank's micro-batches) from step ``start`` to the last, reading nothing before it."""
        ledger = Ledger(self.ledger, start, self.max_bad_share, self.shards)
        coming: deque[tuple[int, int, list[Future[Cut]]]] = deque()
        nextup = start
        for step in range(start, self.total):
            while nextup < self.total and (nextup <= step or sum(len(c[2]) for c in coming) < AHEAD):
                epoch, positions = self.plan.at(nextup)
                coming.append((nextup, epoch, [self.pool.submit(self._cut, nextup, epoch, p) for p in positions]))
                nextup += 1
            _, epoch, futures = coming.popleft()
            begun = time.perf_counter()
            cuts = [await_batch(future) for future in futures]
            self.seconds["wait"] += time.perf_counter() - begun
            share = self.plan.batch // self.plan.size
            ledger.record([f for c in cuts for f in c.faults], (step + 1) * share, share)
            self.bad = ledger.count
            yield step, epoch, [self._finish(c) for c in cuts]

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _finish(self, cut: Cut) -> Loaded:
        begun = time.perf_counter()
        views = self.recipe.finish(cut.crops, cut.draws, self.device)
        ids = torch.from_numpy(cut.ids).to(self.device)
        self.seconds["augment"] += time.perf_counter() - begun
        return Loaded(tuple(views), ids)

    def _cut(self, step: int, epoch: int, positions: np.ndarray) -> Cut:
        """One micro-batch: its samples in order, the unreadable replaced, cut to crops."""
        ids = self.order.ids(epoch, positions)
        faults = []
        if self.held is None:
            images = []
            for i, position in enumerate(positions):
                ids[i], image = self._take(step, epoch, int(position), int(ids[i]), faults)
                images.append(image)
        else:
            for i in np.flatnonzero(self.broken[ids]):
                ids[i], _ = self._take(step, epoch, int(positions[i]), int(ids[i]), faults)
            images = self.held[torch.from_numpy(ids)]
        draws = self.recipe.draws(epoch, ids)
        begun = time.perf_counter()
        if self.recipe.whole and isinstance(images, Tensor):
            crops = (images,)
        else:
            cuts = [self.recipe.cut(image, draws, i) for i, image in enumerate(images)]
            crops = tuple(torch.stack(column) for column in zip(*cuts, strict=True))
        self.seconds["crop"] += time.perf_counter() - begun
        return Cut(crops, ids, draws, faults)

    def _take(self, step: int, epoch: int, position: int, sample: int, faults: list[Fault]) -> tuple[int, Tensor]:
        """The image due at a position, or the first readable one of those that may take its place."""
        for attempt in range(1, ATTEMPTS + 2):
            try:
                return sample, self._image(sample)
            except BadSample as error:
                other = self.order.replacement(epoch, position, attempt)
                faults.append(
                    fault(self.shards, sample, error, step=step, epoch=epoch, position=position, replacement=other)
                )
                sample = other
        place = f"position {position} of epoch {epoch}"
        raise DataError(f"{place}: {ATTEMPTS} replacements unreadable too; check the shards")

    def _image(self, sample: int) -> Tensor:
        """One decoded image, uint8 [C, H, W]. Raises BadSample."""
        if "held" in self.__dict__ and self.held is not None and not self.broken[sample]:
            return self.held[sample]
        begun = time.perf_counter()
        data = read(self.shards, sample)
        read_at = time.perf_counter()
        try:
            image = decode(data, self.recipe.image.channels)
        except ValueError as error:
            raise BadSample("undecodable", str(error)) from error
        self.seconds["read"] += read_at - begun
        self.seconds["decode"] += time.perf_counter() - read_at
        return image

    @cached_property
    def held(self) -> Tensor | None:
        """All images decoded, uint8 [n, C, H, W], where they are of one size and fit; ``broken`` marks the rest."""
        height, width = self.shards.manifest["height"], self.shards.manifest["width"]
        channels = self.recipe.image.channels
        if height is None or self.n * channels * height * width > HELD:
            return None
        held = torch.zeros(self.n, channels, height, width, dtype=torch.uint8)
        broken = np.zeros(self.n, bool)
        for sample in range(self.n):
            try:
                held[sample] = self._image(sample)
            except BadSample:
                broken[sample] = True
        self.broken = broken
        return held


def images(shards: Shards, ids: np.ndarray, side: int) -> Tensor:
    """Images as an encoder is judged on them, uint8 [n, C, side, side]: as packed where they have that size; else the
    short side is resized to 8/7 of ``side`` (256 for 224) and the centre is cut. Raises DataError for an unreadable
    one: a number must not depend on luck."""
    channels = shards.manifest["channels"]
    out = torch.empty(len(ids), channels, side, side, dtype=torch.uint8)
    for i, sample in enumerate(np.asarray(ids).tolist()):
        try:
            image = decode(read(shards, sample), channels)
        except (BadSample, ValueError) as error:
            raise DataError(f"{shards.where(sample)}: {error}; pack again") from error
        out[i] = image if image.shape[1:] == (side, side) else centre(image, side)
    return out


def centre(image: Tensor, side: int) -> Tensor:
    """uint8 [C, H, W] -> [C, side, side]: short side to 8/7 of it with antialias, then the centre."""
    from torchvision.transforms.v2 import functional as F

    return F.center_crop(F.resize(image, [side * 8 // 7], antialias=True), [side, side])
