"""What limits a training: a few hundred images through the loader, a few steps without it, and what follows."""

import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image as Pictures

from pipeline.data.reader import BadSample, read
from pipeline.data.shards import Shards
from pipeline.settings.stages import Pretrain
from pipeline.training import fit, gradients, loop, optim
from pipeline.world import World

IMAGES, STEPS = 384, 3
"""Images that the feed is measured on, at least, and steps of the model, of which the quickest counts."""
FAR = 2.0
"""Times the side of a view that images may be on their short side before they are called far larger."""


@dataclass(frozen=True)
class Found:
    """Seconds an image: ``stages`` of the loader, in one thread; ``step`` of the model, which waits for nothing.
    ``threads``: those that feed it; ``side``: median short side of the files; ``neighbours``: share of images whose
    next one in the shards is of their class, and ``chance`` that it is in a random order (none: no labels)."""

    stages: dict[str, float]
    step: float
    threads: int
    side: float
    neighbours: float | None
    chance: float | None

    @property
    def cores(self) -> float:
        """Threads that would keep the model busy."""
        return sum(self.stages.values()) / self.step


def examine(settings: Pretrain, seed: int, folder: Path, world: World) -> Found:
    """Measures the stage's own feed and objective on its own shards; writes nothing."""
    shards = Shards.open(folder, "train")
    one = settings.model_copy(update={"threads": 1})
    objective, loader, _ = fit.prepare(one, seed, shards, world, None)
    objective.to(world.device)
    count = -(-IMAGES // settings.batch)
    steps = islice(loader.steps(0), count + 1)
    try:
        _, epoch, loaded = next(steps)  # threads start, and a small set is decoded once
        before, begun = dict(loader.seconds), count
        for _ in steps:
            pass
        seconds = {k: (v - before[k]) / (begun * settings.batch) for k, v in loader.seconds.items() if k != "wait"}
        optimiser = optim.build(objective, settings)
        batches = [loop.batch(x, settings, 0, epoch, seed, 0.0) for x in loaded]
        best = np.inf
        for _ in range(STEPS + 1):
            at = time.perf_counter()
            with loop.precision(settings, world):
                result = gradients.backward(objective, objective, batches)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            float(result.loss)  # waits for the device
            best = min(best, time.perf_counter() - at)
    finally:
        loader.close()
    labels = shards.labels
    told = len(labels) > 1 and labels.min() >= 0
    shares = np.bincount(labels) / len(labels) if told else np.zeros(0)
    return Found(
        stages={k: v for k, v in seconds.items() if v > 0.01 * sum(seconds.values())},
        step=best / settings.batch,
        threads=settings.threads,
        side=float(np.median(list(sides(shards)))),
        neighbours=float((labels[1:] == labels[:-1]).mean()) if told else None,
        chance=float((shares**2).sum()) if told else None,
    )


def sides(shards: Shards) -> Iterator[int]:
    """Short sides of some of the files, in pixels."""
    for sample in np.linspace(0, shards.n - 1, min(64, shards.n)).astype(int).tolist():
        try:
            yield min(Pictures.open(io.BytesIO(read(shards, sample))).size)
        except (BadSample, OSError):
            continue


def advice(settings: Pretrain, found: Found, shards: Shards, size: int, ranks: int = 1) -> tuple[str, list[str]]:
    """What limits the training with one thing to change, and what is odd about the shards."""
    slowest = max(found.stages, key=lambda k: found.stages[k])
    large = found.side > FAR * size
    if found.cores <= found.threads:
        limit = "the model limits it: the feed keeps up. To go faster: precision bf16, or more processes"
    else:
        need = int(np.ceil(found.cores))
        limit = f"the feed limits it, {slowest} most: threads {need} would keep the model busy, it has {found.threads}"
        if slowest == "decode" and large:
            limit += f"; or pack again with short_side {size * 8 // 7}, so that less is decoded"
    odd = []
    if found.neighbours is not None and found.chance is not None and found.neighbours > (1 + found.chance) / 2:
        odd.append(
            f"the shards are sorted by class ({found.neighbours:.0%} of neighbours are of one class, by chance "
            f"{found.chance:.0%}): other readers see one class at a time, and so does a small window; pack again"
        )
    if settings.window and settings.window * 4 > len(shards.shards):
        odd.append(
            f"window {settings.window} of {len(shards.shards)} shards: hardly less than all; leave it out, or pack "
            f"smaller shards"
        )
    if len(shards.shards) < ranks:
        odd.append(f"{len(shards.shards)} shards for {ranks} processes: more (shard_images) would spread the reads")
    if large:
        odd.append(f"images of {found.side:.0f} pixels for views of {size}: pack with short_side {size * 8 // 7}")
    return limit, odd
