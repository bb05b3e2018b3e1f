"""Pretraining: shards -> what the objective is given of them -> a model."""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from pipeline import keyed, objectives, sheets
from pipeline.data.images import class_names, images, whole
from pipeline.data.loader import Loader
from pipeline.data.shards import Shards
from pipeline.errors import DataError, DivergedError
from pipeline.evaluation import online
from pipeline.image import Image
from pipeline.lines import say
from pipeline.nets import pretrained
from pipeline.objectives import kinds, models
from pipeline.objectives.base import Objective, Setup
from pipeline.settings.densities import NCE
from pipeline.settings.nets import Net, changed, stage_named, trunk_of
from pipeline.settings.stages import Pretrain
from pipeline.sheets import Frame, Picture
from pipeline.training import loop, restore
from pipeline.views import jigsaw, transforms
from pipeline.world import World

Inputs = Mapping[str, Path]
"""The folders of the stages that this one reads, by name."""
NONE: Inputs = MappingProxyType({})
AVERAGED = 10_000
"""Images, at most, whose pixels an energy's first biases are taken from."""
SHOWN, COLUMNS = 8, 6  # images of the first step that are shown, and columns of that sheet
VIEW, PATCH = 112, 48  # pixels, about, of a view and of a patch of a jigsaw there


def prepare(
    settings: Pretrain, seed: int, shards: Shards, world: World, bad_samples: Path | None, inputs: Inputs = NONE
) -> tuple[Objective, Setup, Loader]:
    """The objective, what it was built for, and what feeds this rank. ``bad_samples``: where they are noted."""
    net = from_stage(settings.net, inputs)
    image = initial_image(settings, net, shards.image(settings.view_size), world)
    samples = settings.samples(shards.n)
    noise = inputs.get(settings.objective.model or "") if isinstance(settings.objective, NCE) else None
    setup = Setup(image, samples, net, world, seed, noise=models.load(noise) if noise else None)
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


def from_stage(net: Net, inputs: Inputs) -> Net:
    """The net with the folder of the stage that its ``init`` names in the place of the name."""
    trunk = trunk_of(net)
    stage = stage_named(trunk.init) if trunk else None
    return changed(net, init=f"artifact:{inputs[stage]}" if stage in inputs else None) if stage else net


def initial_image(settings: Pretrain, net: Net, image: Image, world: World) -> Image:
    """The images as they are normalised: by their own statistics, or as the first weights' were."""
    trunk = trunk_of(net)
    if trunk is None or trunk.init is None:
        return image
    source, ours = pretrained.locate(trunk.init), kinds.of(settings.objective)
    if source.of_ours and not models.objective_class(models.read_spec(source.path.parent)).normalised:
        # Its trunk was given pixels as they are.
        source = replace(source, mean=(0.0,) * image.channels, std=(1.0,) * image.channels)
    elif not ours.normalised and world.main:
        kind = settings.objective.kind
        say(f"{trunk.init} is of normalised pixels, and {kind} is given pixels in [0, 1] as they are")
    if source.mean is None and world.main:
        say(f"nothing beside {source.path} says how its images were normalised (timm's config.json would): these are "
            f"normalised by their own mean and deviation")  # fmt: skip
    return pretrained.normalised_as(source, image)


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
    """Trains on the shards' training split -> the last scalars; writes the model, its snapshots and the board. A
    training that diverges goes back and on at half the rate, as often as it is let."""
    while True:
        times = len(restore.record(out))
        try:
            scalars = attempt(restore.halved(settings, times), seed, inputs, out, world)
            return scalars | ({"restores": times} if times else {})
        except DivergedError as error:
            restore.go_back(error, out, settings.restores, world)


def attempt(settings: Pretrain, seed: int, inputs: dict[str, Path], out: Path, world: World) -> dict[str, float]:
    """The training from its last checkpoint to its end, or to where it diverges."""
    shards = Shards.open(inputs[settings.data], "train")
    objective, setup, loader = prepare(settings, seed, shards, world, out / f"bad-{world.rank}.jsonl", inputs)
    spec, image = models.spec(objective, setup), setup.image

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
            sheets=lambda batch: {"views": views(settings, seed, shards, image, batch)},
        )
    finally:
        loader.close()


def views(settings: Pretrain, seed: int, shards: Shards, image: Image, batch: loop.MicroBatch) -> Picture:
    """Images of the first step beside what the objective is given of them."""
    inputs, ids = settings.objective.inputs, batch.ids[:SHOWN].cpu().numpy()
    given = [view[:SHOWN].cpu() for view in batch.views]
    names, kind = class_names(shards, ids), settings.objective.kind
    if not inputs.views:
        cells, lines = (sheets.lines(x, SHOWN // 2) for x in (sheets.images(given[0], VIEW), names))
        return Picture(sheets.sheet(cells, lines), f"What {kind} is given of {settings.data}: the images themselves.")
    columns = {"image": sheets.images(whole(shards, ids, image.side), VIEW)}
    for i, view in enumerate(image.denormalise(view) for view in given):
        if view.ndim == 4:
            columns[f"view {i + 1}"] = sheets.images(view, VIEW)
        elif inputs.jigsaw is not None and i < inputs.views:
            orders = jigsaw.orders(seed, 0, ids, view.shape[1])
            columns[f"view {i + 1}: patches"] = [puzzle(*row) for row in zip(view, orders, strict=True)]
        else:
            columns["small crops"] = [sheets.tile(crops, math.ceil(len(crops) ** 0.5), gap=6) for crops in view]
    width, across = len(columns), max(1, COLUMNS // len(columns))  # of a sample's cells; samples side by side
    cells = sheets.lines([cell for row in zip(*columns.values(), strict=True) for cell in row], width * across)
    words = sheets.lines([word for name in names for word in [name, *[""] * (width - 1)]], width * across)
    starts = [(row, first) for row, line in enumerate(cells) for first in range(0, len(line), width)]
    large = sum(name.startswith("view") for name in columns)
    frames = [Frame((row, first + 1), (row, first + large), sheets.MARKED) for row, first in starts]
    framed = "a positive pair" if large == 2 else "positives of each other"
    caption = f"What {kind} is given of {settings.data}: images, and the random views of each; framed: {framed}."
    if inputs.jigsaw is not None:
        caption += " Patches lie in their places; the number: in which order the net is shown them."
    return Picture(sheets.sheet(cells, words, [*columns] * across, frames=frames), caption)


def puzzle(patches: Tensor, order: np.ndarray) -> np.ndarray:
    """A jigsaw's patches [P, C, h, w] in their places, as one cell. ``order`` [P]: the place of each."""
    shown = order.argsort()
    edge = math.isqrt(len(order))
    cells = sheets.lines(sheets.images(patches[shown], PATCH), edge)
    return sheets.sheet(cells, sheets.lines([str(number + 1) for number in shown], edge), gap=6)
