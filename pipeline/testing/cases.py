"""An objective to be checked: with its first weights, and with batches of normal numbers in the place of views."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import config, keyed, objectives
from pipeline.errors import ConfigError
from pipeline.hints import nearest
from pipeline.image import Image
from pipeline.objectives.base import Batch, Objective, Setup
from pipeline.settings.nets import Norm
from pipeline.settings.stages import Pretrain
from pipeline.views import transforms
from pipeline.world import World

IDS = [3, 1, 12, 25, 9, 30, 17, 6]
SAMPLES, SIDE = 64, 8


@dataclass(frozen=True)
class Case:
    """An objective to be checked. ``make``: (world, norm, seed, dtype) -> one with its first weights, in training
    mode; ``draw``: (objective, ids, step, dtype) -> a batch, a function of id and step alone, so that any cut of a
    batch gives the same."""

    make: Callable[..., Objective]
    draw: Callable[..., Batch]
    world: World

    def objective(self, **kwargs: Any) -> Objective:
        return self.make(world=self.world, **kwargs)

    def warm(self, dtype: torch.dtype = torch.float64, **kwargs: Any) -> Objective:
        """After a few steps (`warm`)."""
        return warm(self.objective(dtype=dtype, **kwargs), self.draw, dtype)

    def batch(self, objective: Objective, ids: list[int] = IDS, step: int = 3) -> Batch:
        return self.draw(objective, ids, step, torch.float64)


def warm(objective: Objective, draw: Callable[..., Batch], dtype: torch.dtype, steps: int = 3) -> Objective:
    """A few steps' worth of memory: keys, rows and running statistics that are no longer the first ones."""
    for step in range(steps):
        with torch.no_grad():
            result = objective(draw(objective, [(5 * step + i) % SAMPLES for i in range(8)], step, dtype))
        objective.commit(result.pending, step)
    return objective


def case(path: str, stage: str, *overrides: str, world: World | None = None) -> Case:
    """What the stage of a config trains. Raises ConfigError where it trains nothing."""
    stages = config.load(path, overrides).stages
    settings = stages.get(stage)
    if not isinstance(settings, Pretrain):
        trained = [name for name, other in stages.items() if isinstance(other, Pretrain)]
        raise ConfigError(f"{path} trains no {stage}{nearest(stage, trained)}")
    return of_settings(settings, world or World.single(device="cpu"))


def of_settings(settings: Pretrain, world: World) -> Case:
    """An objective on grey images of SIDE pixels, or of the side of its views."""
    side = settings.view_size or SIDE
    image = Image(channels=1, side=side, mean=(0.3,), std=(0.4,))
    shapes = transforms.build(settings.objective.inputs, settings.views, image, 0).view_shapes
    return Case(partial(make, settings, image), partial(draw, settings.objective.inputs.views, shapes), world)


def make(settings: Pretrain, image: Image, world: World, norm: Norm | None = None, seed: int = 0,
         dtype: torch.dtype = torch.float64) -> Objective:  # fmt: skip
    net = settings.net
    if norm is not None and "norm" in type(net).model_fields:
        net = net.model_copy(update={"norm": norm})
    return objectives.build(settings.objective, Setup(image, SAMPLES, net, world, seed)).to(dtype).train()


def draw(count: int, shapes: tuple[tuple[int, ...], ...], _: Objective, ids: list[int], step: int = 0,
         dtype: torch.dtype = torch.float64) -> Batch:  # fmt: skip
    """Views of these shapes: the image itself in [0, 1] where the ``count`` of random views is 0, else normal numbers,
    those of the second view near those of the first."""
    views = []
    for k, shape in enumerate(shapes):
        first = numbers(ids, shape, "first" if shape == shapes[0] else f"view {k}")
        other = numbers(ids, shape, f"view {k} of step {step}")
        views.append(first + 0.2 * other if count else (0.5 + 0.3 * first).clamp(0, 1))
    given = tuple(view.to(dtype) for view in views)
    return Batch(given, torch.tensor(ids), step=step, epoch=step // 2, seed=7, progress=0.25, dtype=dtype)


def numbers(ids: Iterable[int], shape: tuple[int, ...], op: str) -> Tensor:
    """Standard normal float64 numbers [B, *shape]."""
    count = int(np.prod(shape))
    return torch.stack([torch.from_numpy(keyed.normal(count, "testing", op, i).copy()).reshape(shape) for i in ids])
