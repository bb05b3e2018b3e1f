"""What a training stage will take, before it runs: images, steps, parameters and memory.

The objective is built, and one micro-batch sent through it, on torch's meta device: shapes without numbers.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline import objectives
from pipeline.data.sources import open_source
from pipeline.data.splits import halves
from pipeline.image import Image
from pipeline.objectives.base import Batch, Objective, Setup
from pipeline.settings.stages import Pack, Pretrain
from pipeline.views import transforms
from pipeline.world import World


@dataclass(frozen=True)
class Packed:
    """A packed set as far as it is known: training images, channels (None before packing), side of the images (None
    where it varies, too)."""

    images: int
    channels: int | None
    side: int | None


def packed(settings: Pack, seed: int, folder: Path) -> Packed | None:
    """What the shards are, if they are there, or what they will be, as far as that is known before."""
    manifest = folder / "manifest.json"
    if manifest.exists():
        facts = json.loads(manifest.read_text())
        side = facts["height"] if facts["height"] == facts["width"] else None
        return Packed(facts["splits"]["train"]["images"], facts["channels"], side)
    if settings.source == "digits":
        return Packed(training_images(settings, seed, folder.parent), 1, 8)
    if settings.source.startswith("folder:"):
        return Packed(training_images(settings, seed, folder.parent), None, None)
    return None


def training_images(settings: Pack, seed: int, root: Path) -> int:
    """Images of a source, readable or not, that packing would give to train on: by their names alone."""
    return len(halves(open_source(settings, root).listing(), settings.test, seed)["train"])


def build(settings: Pretrain, data: Packed | None, seed: int) -> tuple[Objective, Image] | None:
    """The objective on the meta device and the images it is for; None where their side is not known yet."""
    side = settings.view_size or (data.side if data else None)
    if side is None:
        return None
    channels = (data.channels if data else None) or 3
    image = Image(channels, side, (0.5,) * channels, (0.5,) * channels)
    world = World.single(device="meta")
    samples = settings.samples(data.images) if data else settings.train_examples or 1
    with torch.device("meta"):
        return objectives.build(settings.objective, Setup(image, samples, settings.net, world, seed)), image


def parameters(objective: Objective) -> int:
    """Numbers that are trained."""
    return sum(p.numel() for p in objective.parameters() if p.requires_grad)


def memory(settings: Pretrain, objective: Objective, image: Image) -> int:
    """Bytes that one process holds at the peak of a step: weights, gradients, optimiser, memory banks, and what the
    forward pass keeps for the backward pass of one micro-batch. Workspaces and the allocator's slack come on top."""
    trained = 4 * parameters(objective)
    states = {"sgd": 1, "lars": 1, "adam": 2}[settings.optimiser.kind]
    frozen = 4 * sum(p.numel() for p in objective.parameters()) - trained
    average = trained if settings.ema or settings.average else 0
    pieces = settings.place.workers if settings.weights == "sharded" else 1
    weights = (trained * (2 + states) + frozen + average) // pieces
    memories = sum(t.numel() * t.element_size() for t in objective.buffers())
    return weights + memories + saved_bytes(settings, objective, image)


def saved_bytes(settings: Pretrain, objective: Objective, image: Image) -> int:
    """Bytes saved for the backward pass of embedding one micro-batch, each storage once, weights left out; and of
    the table of energies. Under bf16, half of it."""
    rows = settings.batch // settings.accumulate // settings.place.workers
    shapes = transforms.build(settings.objective.inputs, settings.views, image, 0).view_shapes
    views = tuple(torch.empty(rows, *shape, device="meta") for shape in shapes)
    seen: list[Tensor] = []  # kept alive, so that no storage is counted for another that took its place
    weights = {p.untyped_storage()._cdata for p in objective.parameters()}

    def note(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    objective.train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        result = objective.embed(Batch(views, torch.zeros(rows, dtype=torch.int64)))
    storages = {x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in seen}
    embedding = sum(size for at, size in storages.items() if at not in weights)
    del result
    small = getattr(settings.views[0], "small", None)  # each of which asks for what a view asks for
    queries = rows * (1 + small.count if small else 1)
    energies = 8 * objective.energy_count(queries, settings.batch)  # themselves and their gradient
    return energies + (embedding // 2 if settings.precision == "bf16" else embedding)
