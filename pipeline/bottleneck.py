"""What limits a training, its loader or its model, from seconds that were measured or logged. Imports no torch."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

FAR = 2.0
"""Images whose short side is more than FAR times a view's side are reported as too large."""
WAITS = 0.1
"""The loader limits a training that waits for it for more than this share of its time."""
STAGES = ("read", "decode", "crop", "transfer", "augment")
"""The loader's stages, logged as speed/read and so on, in seconds a step."""


@dataclass(frozen=True)
class Measurement:
    """Times of a training. ``stages``: seconds an image of each stage of the loader, in one thread; ``step``: seconds
    an image of a training step without the loader; ``threads``: of the loader; ``side``: median short side of the
    files in pixels, 0 where it is not known; ``wait``: the share of its time that a training has waited for its loader
    (None where none was run)."""

    stages: dict[str, float]
    step: float
    threads: int
    side: float = 0.0
    wait: float | None = None

    @property
    def cores(self) -> float:
        """Loader threads that would keep the model busy."""
        return sum(self.stages.values()) / self.step

    @property
    def fed(self) -> bool:
        """Whether the loader keeps up with the model."""
        return self.cores <= self.threads if self.wait is None else self.wait <= WAITS


def logged(rows: Iterable[Mapping[str, float]], batch: int, threads: int) -> Measurement | None:
    """The measurement in a training's timings.jsonl: medians over its ``rows``, so that a checkpoint or the first
    steps do not count. Returns None where no row has a rate. ``batch``: images of a step."""
    rows = [row for row in rows if row.get("speed/images_per_s", 0) > 0]
    if not rows:
        return None
    totals = [batch / row["speed/images_per_s"] for row in rows]
    waits = [row.get("speed/wait_most", row.get("speed/wait", 0.0)) for row in rows]
    shares = [min(1.0, wait / total) for wait, total in zip(waits, totals, strict=True)]
    busy = [max(total - wait, 1e-9) for wait, total in zip(waits, totals, strict=True)]
    stages = {name: median(row.get(f"speed/{name}", 0.0) for row in rows) / batch for name in STAGES}
    stages = {name: value for name, value in stages.items() if value > 0.01 * sum(stages.values())}
    return Measurement(stages, median(busy) / batch, threads, wait=median(shares))


def limit(speed: Measurement, size: int) -> str:
    """A line that says what limits a training on views of ``size`` pixels, and one setting to change."""
    if speed.fed:
        return "the model limits it: the feed keeps up. To go faster: more processes, or on a GPU precision bf16"
    if not speed.stages:
        return "the feed limits it: the training waits for its images"
    slowest = max(speed.stages, key=lambda k: speed.stages[k])
    need = max(math.ceil(speed.cores), speed.threads + 1)
    text = f"the feed limits it, {slowest} most: threads {need} would keep the model busy, it has {speed.threads}"
    if slowest == "decode" and speed.side > FAR * size:
        text += f"; or pack again with short_side {size * 8 // 7}, so that less is decoded"
    return text
