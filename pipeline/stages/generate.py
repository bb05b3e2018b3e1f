"""What a trained model draws of test images, and the energies that it gives them."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import keyed, objectives
from pipeline.board import Board, last_step
from pipeline.data.images import class_names, images
from pipeline.data.shards import Shards
from pipeline.errors import Stopped
from pipeline.evaluation import balls, encoders, frechet, importance, likelihood
from pipeline.evaluation.frechet import Cells
from pipeline.nets.energies import RBM
from pipeline.objectives.base import Batch
from pipeline.objectives.variational import Variational
from pipeline.samplers import gibbs
from pipeline.settings.stages import Generate
from pipeline.sheets import Picture, tile
from pipeline.world import World

SHOWN, COLUMNS = 100, 10
"""Chains or filters on a sheet, and in a row of it."""


@torch.no_grad()
def run(settings: Generate, seed: int, inputs: dict[str, Path], out: Path, world: World) -> dict[str, Any]:
    """Draws the model's figures on the board -> the mean energy of the images they are of, and a density's
    likelihood."""
    objective = objectives.load(inputs[settings.model]).to(world.device)
    train, shards = (Shards.open(inputs[settings.data], split) for split in ("train", "test"))
    ids = keyed.permute(np.arange(min(settings.images, shards.n)), shards.n, seed, "shown")
    pictures = pixels(shards, ids).to(world.device)
    board = Board(out, -1)  # always anew: it costs seconds
    step, source = last_step(inputs[settings.model]) or 0, f"Model {settings.model}, data {settings.data}."
    for tag, figure in objective.figures(pictures, class_names(shards, ids), seed).items():
        board.image(tag, step, figure.of(source))
    batch = Batch((pictures,), torch.from_numpy(ids).to(world.device), seed=seed)
    metrics: dict[str, Any] = {"energy": float(objective(batch).low.mean())}
    numbers = objective.measures(pictures, seed)
    metrics |= {tag.rpartition("/")[2]: value for tag, value in numbers.items()}
    scalars = {"energy/test": metrics["energy"]} | numbers
    found, chains, histograms = measures(objective, train, shards, settings, seed, world)
    metrics |= found
    scalars |= {f"density/{name}": value for name, value in found.items() if name != "protocol"}
    for tag, values in histograms.items():
        board.histogram(tag, step, values.cpu().numpy())
    for tag, picture in chains.items():
        board.image(f"chains/{tag}", step, picture.of(source))
    if settings.samples and hasattr(objective, "sample"):
        found = frechet_distance(objective, settings, seed, inputs, world)
        metrics |= found
        scalars |= {f"density/{name}": found[name] for name in ("frechet", "frechet_floor")}
    if settings.beside:
        folders = [inputs[name] for name in (*settings.beside, settings.model)]
        picture, found = balls.sheet(folders, batch, class_names(shards, ids))
        metrics |= found
        board.image("latent/balls", step, picture.of(f"Data {settings.data}."))
    board.scalars(0, scalars)
    board.close()
    return metrics


def frechet_distance(
    objective: Any, settings: Generate, seed: int, inputs: dict[str, Path], world: World
) -> dict[str, Any]:
    """The Frechet distance of samples from test images, and of training images from them."""
    splits = [Shards.open(inputs[settings.data], split) for split in ("test", "train")]
    count = min(settings.samples, *(shards.n for shards in splits))
    sets = [pixels(x, keyed.permute(np.arange(count), x.n, seed, "frechet")) for x in splits]
    drawn = objective.sample(count, seed).view(-1, *sets[0].shape[1:])
    encoder = Cells() if settings.features is None else encoders.load(inputs[settings.features])
    test, train = (images.to(world.device) for images in sets)
    name = settings.features or "cells"
    return frechet.measure(drawn, test, train, encoder.to(world.device), name)


def measures(
    objective: Any, train: Shards, shards: Shards, settings: Generate, seed: int, world: World
) -> tuple[dict[str, Any], dict[str, Picture], dict[str, Tensor]]:
    """What is measured of all test images, sheets of chains, and values of histograms by tag; empty where the model is
    no density."""
    if isinstance(getattr(objective, "net", None), RBM):
        return evaluate(objective, train, shards, settings, seed, world)
    if isinstance(objective, Variational):
        ids, batch = keyed_batch(shards, seed, world)
        images = objective.target(batch)
        found = importance.evaluate(objective, images, ids, settings.likelihood.samples, seed, partial(halt, world))
        return found, {}, {"vae/kl_units": importance.divergences(objective, images)}
    return {}, {}, {}


def keyed_batch(shards: Shards, seed: int, world: World, most: int | None = None) -> tuple[np.ndarray, Batch]:
    """All images of a split, or so many of them, in a keyed order, their ids beside them."""
    ids = keyed.permute(np.arange(min(most or shards.n, shards.n)), shards.n, seed, "shown")
    pictures = pixels(shards, ids).to(world.device)
    return ids, Batch((pictures,), torch.from_numpy(ids).to(world.device), seed=seed)


def evaluate(
    objective: Any, train: Shards, shards: Shards, settings: Generate, seed: int, world: World
) -> tuple[dict[str, Any], dict[str, Picture], dict[str, Tensor]]:
    """The log-likelihood of all test images with its protocol; sheets of chains and filters; and energies of test
    and training images, chains and what is simpler than any image: a black one, and pixels on at random as often as
    in the images."""
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
    ink = states.float().mean().expand(SHOWN, states.shape[1])
    noise = gibbs.bernoulli(ink, keyed.key(seed, "noise", np.arange(SHOWN)))
    sets = {
        "test": states,
        "train": objective.states(keyed_batch(train, seed, world, len(states))[1]),
        "fresh": found.fresh,
        "particles": found.particles,
        "black": 0 * noise[:1],
        "noise": noise,
    }
    return (
        found.metrics | {"protocol": protocol},
        {
            tag: Picture(tile(rows[:SHOWN].float().view(-1, *batch.views[0].shape[1:]), COLUMNS), caption)
            for tag, (rows, caption) in sheets.items()
        },
        {f"density/energy_{name}": objective.energy(rows.float()) for name, rows in sets.items()},
    )


def halt(world: World) -> None:
    """Raises Stopped where the stage was asked to stop."""
    if world.stopping():
        raise Stopped("asked to stop: a likelihood is kept when it is whole; the same command begins it anew")


def pixels(shards: Shards, ids: np.ndarray) -> Tensor:
    """The images of these ids in [0, 1], [n, C, H, W]."""
    return images(shards, ids, shards.image(None).side).float() / 255
