"""Checks a stage's settings against the number and size of its images before it starts, without torch: an error where
it cannot run, a line where it would run but not as the settings suggest."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.settings.stage import Stage
from pipeline.settings.stages import Pretrain, Probe

LEFT_OUT = 0.2
"""Share of the images that an epoch may leave out without a line about it."""
ENLARGED = 2
"""Factor by which images may be enlarged without a line about it."""


def stage(name: str, settings: Stage, folder: Path) -> list[str]:
    """Lines about a stage that reads the shards in ``folder``. Raises DataError where a probe cannot run on them, and
    ConfigError where a training cannot."""
    path = folder / "manifest.json"
    if isinstance(settings, Probe):
        from pipeline.evaluation import requirements

        return requirements.check(settings, folder)
    if not isinstance(settings, Pretrain) or not path.exists():
        return []
    manifest = json.loads(path.read_text())
    side = manifest["height"] if manifest["height"] == manifest["width"] else None
    return training(name, settings, manifest["splits"]["train"]["images"], side)


def training(name: str, settings: Pretrain, images: int, side: int | None = None) -> list[str]:
    """Lines about a training on ``images`` packed images, squares of ``side`` pixels if that is given. Raises
    ConfigError where they are fewer than a batch, and where the network or patches do not fit views of that side."""
    count = settings.samples(images)
    if settings.batch > count:
        raise ConfigError(
            f"{name}: batch {settings.batch} of {count:,} images to train on: make it at most {count}, or pack more"
        )
    mistakes = settings.misfits(side) if side is not None and settings.view_size is None else ()
    if lines := [f"{name}.{key}: {text}" for key, text in mistakes]:
        raise ConfigError("\n".join(lines))
    return list(remarks(settings, images, count, side))


def remarks(settings: Pretrain, images: int, count: int, side: int | None) -> Iterator[str]:
    batch, an_epoch, total = settings.batch, settings.steps_per_epoch(images), settings.total_steps(images)
    queue = getattr(settings.objective, "queue", 0)
    if queue > count:
        fill = math.ceil(queue / (batch * (1 + getattr(settings.objective, "symmetric", False))))
        never = f", which these {total:,} do not reach" if fill > total else ""
        yield (
            f"queue {queue:,} is {times(queue / count)} the {count:,} images: the loss rises until it is full, after "
            f"{fill:,} steps{never}, and it then holds {times(queue / count)} every image; at most {count:,} is usual"
        )
    if settings.train_examples is not None and settings.train_examples > images:
        yield f"train_examples {settings.train_examples:,}: there are {images:,}, all of which are used"
    if (rest := count % batch) > LEFT_OUT * count:
        yield (
            f"batch {batch} of {count:,} images: an epoch is {plural(an_epoch, 'step')} and leaves out {rest:,} of "
            f"them, others each time; a batch of {count // (an_epoch + 1)} or less leaves out few"
        )
    if total < an_epoch:
        yield f"steps {total:,} of {an_epoch:,} an epoch: {count - total * batch:,} images are never seen"
    if total <= settings.warmup_epochs * an_epoch:
        yield (
            f"warmup_epochs {settings.warmup_epochs:g} are {settings.warmup_epochs * an_epoch:,.0f} steps of "
            f"{total:,}: the learning rate never reaches its peak"
        )
    size = settings.view_size
    if size and side and size > ENLARGED * side:
        yield f"views.size {size} of images of {side} pixels: they are enlarged {times(size / side)}"


def times(share: float) -> str:
    return f"{share:.2g} times" if share < 10 else f"{share:,.0f} times"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
