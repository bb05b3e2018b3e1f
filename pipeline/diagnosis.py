"""Measures what limits a training's speed: the loader on a few hundred images, and a few steps without it."""

import io
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pictures

from pipeline.bottleneck import FAR, Measurement, limit
from pipeline.data.loader import Loader
from pipeline.data.reader import BadSample, read
from pipeline.data.shards import Shards
from pipeline.objectives.base import Objective
from pipeline.settings.stages import Pretrain
from pipeline.stages import pretrain
from pipeline.training import loop, optim
from pipeline.world import World

IMAGES, STEPS = 384, 3
"""The least number of images that the loader is timed on, and the steps of the model, of which the fastest counts."""


@dataclass(frozen=True)
class Examination(Measurement):
    """A measurement, and facts of the shards: ``neighbours`` is the share of images that they order before one of the
    same class, ``chance`` that share in a random order (both None without labels)."""

    neighbours: float | None = None
    chance: float | None = None


def examine(settings: Pretrain, seed: int, folder: Path, world: World) -> Examination:
    """Measures a stage's loader and objective on its shards. Writes nothing."""
    shards = Shards.open(folder, "train")
    one_thread = settings.model_copy(update={"threads": 1})
    objective, _, loader = pretrain.prepare(one_thread, seed, shards, world, None)
    objective.to(world.device)
    try:
        seconds, epoch, loaded = feed_seconds(loader, settings.batch)
        batches = [loop.batch(x, settings, 0, epoch, seed, 0.0) for x in loaded]
        step = step_seconds(objective, settings, batches, world)
    finally:
        loader.close()
    neighbours, chance = sorting(shards.labels)
    return Examination(
        stages={k: v for k, v in seconds.items() if v > 0.01 * sum(seconds.values())},
        step=step / settings.batch,
        threads=settings.threads,
        side=float(np.median(list(sides(shards)))),
        neighbours=neighbours,
        chance=chance,
    )


def feed_seconds(loader: Loader, batch: int) -> tuple[dict[str, float], int, list[Any]]:
    """Seconds an image of each stage of the loader, and the epoch and micro-batches of its first step."""
    count = -(-IMAGES // batch)
    steps = islice(loader.steps(0), count + 1)
    _, epoch, loaded = next(steps)  # threads start, and a small set is decoded once
    before = dict(loader.seconds)
    for _ in steps:
        pass
    seconds = {k: (v - before[k]) / (count * batch) for k, v in loader.seconds.items() if k != "wait"}
    return seconds, epoch, loaded


def step_seconds(objective: Objective, settings: Pretrain, batches: list[Any], world: World) -> float:
    """Seconds of the fastest of several steps on the same batch."""
    optimiser, best = optim.build(objective, settings), math.inf
    for _ in range(STEPS + 1):
        start = time.perf_counter()
        with loop.precision(settings, world):
            result = loop.backward(objective, objective, batches)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        float(result.loss)  # waits for the device
        best = min(best, time.perf_counter() - start)
    return best


def sorting(labels: np.ndarray) -> tuple[float | None, float | None]:
    """The share of images that are followed by one of their class, and that share in a random order; None, None
    without labels."""
    if len(labels) < 2 or labels.min() < 0:
        return None, None
    shares = np.bincount(labels) / len(labels)
    return float((labels[1:] == labels[:-1]).mean()), float((shares**2).sum())


def sides(shards: Shards) -> Iterator[int]:
    """The short sides of up to 64 of the files, in pixels."""
    for sample in np.linspace(0, shards.n - 1, min(64, shards.n)).astype(int).tolist():
        try:
            yield min(Pictures.open(io.BytesIO(read(shards, sample))).size)
        except (BadSample, OSError):
            continue


def advice(settings: Pretrain, speed: Examination, shards: Shards, size: int, ranks: int = 1) -> tuple[str, list[str]]:
    """A line that says what limits the training and what to change, and warnings about the shards."""
    return limit(speed, size), list(warnings(settings, speed, shards, size, ranks))


def warnings(settings: Pretrain, speed: Examination, shards: Shards, size: int, ranks: int) -> Iterator[str]:
    if speed.neighbours is not None and speed.chance is not None and speed.neighbours > (1 + speed.chance) / 2:
        yield (
            f"the shards are sorted by class ({speed.neighbours:.0%} of neighbours are of one class, by chance "
            f"{speed.chance:.0%}): other readers see one class at a time, and so does a small window; pack again"
        )
    if settings.window and settings.window * 4 > len(shards.shards):
        yield (
            f"window {settings.window} of {len(shards.shards)} shards: hardly less than all; leave it out, or pack "
            f"smaller shards"
        )
    if len(shards.shards) < ranks:
        yield f"{len(shards.shards)} shards for {ranks} processes: more (shard_images) would spread the reads"
    if speed.side > FAR * size:
        yield f"images of {speed.side:.0f} pixels for views of {size}: pack with short_side {size * 8 // 7}"
