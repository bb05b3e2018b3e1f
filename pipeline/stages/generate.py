"""What a trained model draws of test images, and the energies that it gives them."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline import keyed, objectives
from pipeline.board import Board, last_step
from pipeline.data.images import class_names, images
from pipeline.data.shards import Shards
from pipeline.errors import ConfigError, Stopped
from pipeline.evaluation import anomaly, balls, encoders, frechet, importance, likelihood
from pipeline.evaluation.frechet import Cells
from pipeline.nets.energies import RBM
from pipeline.objectives.base import Batch
from pipeline.objectives.variational import Variational
from pipeline.settings.stages import Generate
from pipeline.sheets import Picture, tile
from pipeline.world import World

SHOWN, COLUMNS = 100, 10
"""Chains or filters on a sheet, and in a row of it."""


class Found(NamedTuple):
    """Metrics of the artifact; scalars, pictures and values of histograms by tag."""

    metrics: dict[str, Any] = {}
    scalars: dict[str, float] = {}
    pictures: dict[str, Picture] = {}
    histograms: dict[str, Tensor] = {}


@torch.no_grad()
def run(settings: Generate, seed: int, inputs: dict[str, Path], out: Path, world: World) -> dict[str, Any]:
    """Draws the model's figures on the board -> the mean energy of the images they are of, what energies tell from
    them, and a density's likelihood."""
    objective = objectives.load(inputs[settings.model]).to(world.device)
    train, shards = (Shards.open(inputs[settings.data], split) for split in ("train", "test"))
    ids, batch = keyed_batch(shards, seed, world, settings.images)
    names = class_names(shards, ids)
    others = {name: foreign(name, inputs, settings, seed, world) for name in settings.others}
    parts = [
        figures(objective, batch, names),
        measures(objective, train, shards, settings, seed, world),
        anomalies(objective, batch, ids, others),
    ]
    if settings.samples and hasattr(objective, "sample"):
        parts.append(frechet_distance(objective, settings, seed, inputs, world))
    if settings.beside:
        folders = [inputs[name] for name in (*settings.beside, settings.model)]
        picture, numbers = balls.sheet(folders, batch, names)
        parts.append(Found(numbers, {}, {"latent/balls": picture}))
    write(parts, Board(out, -1), last_step(inputs[settings.model]) or 0, settings)  # always anew: it costs seconds
    return {name: value for part in parts for name, value in part.metrics.items()}


def write(parts: list[Found], board: Board, step: int, settings: Generate) -> None:
    source = f"Model {settings.model}, data {settings.data}."
    for part in parts:
        for tag, picture in part.pictures.items():
            board.image(tag, step, picture.of(source))
        for tag, values in part.histograms.items():
            board.histogram(tag, step, values.cpu().numpy())
    board.scalars(0, {tag: value for part in parts for tag, value in part.scalars.items()})
    board.close()


def figures(objective: Any, batch: Batch, names: list[str]) -> Found:
    """What the objective itself draws and measures of images, of classes with these names each."""
    (images,) = batch.views
    numbers = objective.measures(images, batch.seed)
    metrics = {tag.rpartition("/")[2]: value for tag, value in numbers.items()}
    return Found(metrics, numbers, objective.figures(images, names, batch.seed))


def anomalies(objective: Any, batch: Batch, ids: np.ndarray, others: dict[str, Tensor]) -> Found:
    """The mean energy of images, and what energies tell from them: simpler ones, and those of other sets."""
    rows, energies, picture = anomaly.measure(objective, batch.views[0], ids, others, batch.seed)
    energy = float(energies["test"].mean())
    scalars = {"energy/test": energy} | {f"anomaly/{name}": row["auroc"] for name, row in rows.items()}
    scalars |= {f"anomaly/{name}_corrected": row["corrected"] for name, row in rows.items()}
    histograms = {f"density/energy_{name}": values for name, values in energies.items()}
    return Found({"energy": energy, "anomaly": rows}, scalars, {"anomaly/sets": picture}, histograms)


def foreign(name: str, inputs: dict[str, Path], settings: Generate, seed: int, world: World) -> Tensor:
    """Test images of another packed set, cut to the size of the model's [n, C, H, W]. Raises ConfigError where they
    have not as many channels."""
    shards, other = (Shards.open(inputs[stage], "test") for stage in (settings.data, name))
    image, channels = shards.image(None), other.image(None).channels
    if channels != image.channels:
        raise ConfigError(
            f"others: images of {name} have {channels} channels, those of {settings.data} {image.channels}; "
            "expected as many; leave it out"
        )
    ids = keyed.permute(np.arange(min(settings.images, other.n)), other.n, seed, "shown")
    return images(other, ids, image.side).to(world.device).float() / 255


def frechet_distance(
    objective: Any, settings: Generate, seed: int, inputs: dict[str, Path], world: World
) -> Found:
    """The Frechet distance of samples from test images, and of training images from them."""
    splits = [Shards.open(inputs[settings.data], split) for split in ("test", "train")]
    count = min(settings.samples, *(shards.n for shards in splits))
    sets = [pixels(x, keyed.permute(np.arange(count), x.n, seed, "frechet")) for x in splits]
    drawn = objective.sample(count, seed).view(-1, *sets[0].shape[1:])
    encoder = Cells() if settings.features is None else encoders.load(inputs[settings.features])
    test, train = (images.to(world.device) for images in sets)
    name = settings.features or "cells"
    found = frechet.measure(drawn, test, train, encoder.to(world.device), name)
    return Found(found, {f"density/{name}": found[name] for name in ("frechet", "frechet_floor")})


def measures(
    objective: Any, train: Shards, shards: Shards, settings: Generate, seed: int, world: World
) -> Found:
    """What is measured of all test images, with sheets of chains; nothing where the model is no density."""
    if isinstance(getattr(objective, "net", None), RBM):
        return evaluate(objective, train, shards, settings, seed, world)
    if isinstance(objective, Variational):
        ids, batch = keyed_batch(shards, seed, world)
        images = objective.target(batch)
        found = importance.evaluate(objective, images, ids, settings.likelihood.samples, seed, partial(halt, world))
        return Found(found, densities(found), {}, {"vae/kl_units": importance.divergences(objective, images)})
    return Found()


def densities(found: dict[str, Any]) -> dict[str, float]:
    """A likelihood's numbers by tag."""
    return {f"density/{name}": value for name, value in found.items() if name != "protocol"}


def keyed_batch(shards: Shards, seed: int, world: World, most: int | None = None) -> tuple[np.ndarray, Batch]:
    """All images of a split, or so many of them, in a keyed order, their ids beside them."""
    ids = keyed.permute(np.arange(min(most or shards.n, shards.n)), shards.n, seed, "shown")
    pictures = pixels(shards, ids).to(world.device)
    return ids, Batch((pictures,), torch.from_numpy(ids).to(world.device), seed=seed)


def evaluate(
    objective: Any, train: Shards, shards: Shards, settings: Generate, seed: int, world: World
) -> Found:
    """The log-likelihood of all test images with its protocol; sheets of chains and filters; and energies of
    training images and chains."""
    _, batch = keyed_batch(shards, seed, world)
    states = objective.states(batch).to(torch.uint8)
    particles = objective.particles.states if hasattr(objective, "particles") else None
    found = likelihood.evaluate(objective.net, states, particles, settings.likelihood, seed, partial(halt, world))
    protocol = likelihood.protocol(objective, len(states), settings.likelihood)
    filters = objective.net.weight.T[:SHOWN]
    filters = 0.5 + 0.5 * filters / filters.abs().amax(1, keepdim=True)
    sheets = {
        "data": (states, "Test images as binary states."),
        "fresh": (found.fresh, "States of chains drawn afresh, after all temperatures."),
        "particles": (found.particles, "States of the training's particles after more sweeps of the model."),
        "filters": (filters, "Weights of hidden units to pixels, each unit's over its largest: grey is 0."),
    }
    sets = {
        "train": objective.states(keyed_batch(train, seed, world, len(states))[1]),
        "fresh": found.fresh,
        "particles": found.particles,
    }
    pictures = {
        f"chains/{name}": Picture(tile(rows[:SHOWN].float().view(-1, *batch.views[0].shape[1:]), COLUMNS), caption)
        for name, (rows, caption) in sheets.items()
    }
    energies = {f"density/energy_{name}": objective.energy(rows.float()) for name, rows in sets.items()}
    return Found(found.metrics | {"protocol": protocol}, densities(found.metrics), pictures, energies)


def halt(world: World) -> None:
    """Raises Stopped where the stage was asked to stop."""
    if world.stopping():
        raise Stopped("asked to stop: a likelihood is kept when it is whole; the same command begins it anew")


def pixels(shards: Shards, ids: np.ndarray) -> Tensor:
    """The images of these ids in [0, 1], [n, C, H, W]."""
    return images(shards, ids, shards.image(None).side).float() / 255
