"""Pretraining: shards -> what the objective is given of them -> a model."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline import keyed, objectives, sheets
from pipeline.data.images import images
from pipeline.data.loader import Loader
from pipeline.data.shards import Shards
from pipeline.errors import DataError
from pipeline.evaluation import online
from pipeline.objectives import models
from pipeline.objectives.base import Objective, Setup
from pipeline.settings.stages import Pretrain
from pipeline.training import loop
from pipeline.views import transforms
from pipeline.world import World

AVERAGED = 10_000
"""Images, at most, whose pixels an energy's first biases are taken from."""


def prepare(
    settings: Pretrain, seed: int, shards: Shards, world: World, bad_samples: Path | None
) -> tuple[Objective, Setup, Loader]:
    """The objective, what it was built for, and what feeds this rank. ``bad_samples``: where they are noted."""
    image = shards.image(settings.view_size)
    samples = settings.samples(shards.n)
    setup = Setup(image, samples, settings.net, world, seed)
    if settings.objective.energy:
        means = world.from_first(lambda: pixel_means(shards, image.side, samples))
        setup = replace(setup, pixel_means=means)
    objective = objectives.build(settings.objective, setup)
    loader = Loader(
        shards,
        transforms.build(settings.objective.inputs, settings.views, image, seed),
        batch=settings.batch,
        accumulate=settings.accumulate,
        seed=seed,
        rank=world.rank,
        size=world.size,
        threads=settings.threads,
        device=world.device,
        total_steps=settings.total_steps(shards.n),
        limit=settings.train_examples,
        window=settings.window,
        bad_samples=bad_samples,
        max_bad_share=settings.max_bad_share,
    )
    return objective, setup, loader


def pixel_means(shards: Shards, side: int, samples: int) -> Tensor | None:
    """The mean image of a fixed draw of those trained on, in [0, 1], [C, H, W]; as in training, what cannot be read is
    not among them."""
    ids = keyed.permute(np.arange(min(samples, AVERAGED)), samples, "pixel means")
    readable = []
    for sample in ids:
        with suppress(DataError):
            readable.append(images(shards, sample[None], side))
    return torch.cat(readable).double().mean(0).float() / 255 if readable else None


def run(settings: Pretrain, seed: int, inputs: dict[str, Path], out: Path, world: World) -> dict[str, float]:
    """Trains on the shards' training split -> the last scalars; writes the model, its snapshots and the board."""
    shards = Shards.open(inputs[settings.data], "train")
    objective, setup, loader = prepare(settings, seed, shards, world, out / f"bad-{world.rank}.jsonl")
    spec, image = models.spec(objective, setup), setup.image
    pixels = image.denormalise if settings.objective.inputs.views else torch.Tensor.float

    def export(weights: dict[str, Tensor], where: Path) -> None:
        models.write(where, weights, spec)

    total = settings.total_steps(shards.n)
    every = min(total, settings.save_steps or settings.save_epochs * settings.steps_per_epoch(shards.n))
    # A forward pass on so many costs a hundredth of the training between two checkpoints.
    budget = every * settings.batch // 25
    evaluate = online.evaluation(
        settings.online, shards, image, settings.samples(shards.n), budget, seed, objective.normalised
    )
    try:
        return loop.train(
            objective,
            loader,
            settings,
            total=total,
            seed=seed,
            out=out,
            world=world,
            export=export,
            evaluate=evaluate,
            sheets=lambda views: {"views": sheets.views([pixels(view) for view in views])},
        )
    finally:
        loader.close()
