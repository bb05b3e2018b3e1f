"""Estimates the images, parameters and memory of a training before it runs.

The objective is built on torch's meta device, which has shapes but no values, and embeds one micro-batch there.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline import objectives
from pipeline.data.sources import open_source
from pipeline.data.splits import halves
from pipeline.image import Image
from pipeline.nets import blocks
from pipeline.objectives.base import Batch, Objective, Setup
from pipeline.settings.nets import changed, stage_named, trunk_of
from pipeline.settings.stages import Pack, Pretrain
from pipeline.views import transforms
from pipeline.world import World


@dataclass(frozen=True)
class Packed:
    """What is known of a packed set: the number of training images, the channels (None before packing), and the side
    of the images in pixels (None before packing, or where it varies)."""

    images: int
    channels: int | None
    side: int | None


def packed(settings: Pack, seed: int, folder: Path) -> Packed | None:
    """What is known of a pack: from its shards if they exist, else from its source; None if neither tells."""
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
    """The number of training images that packing would give, from the source's names alone: unreadable images are
    counted too."""
    return len(halves(open_source(settings, root).listing(), settings.test, seed)["train"])


def build(settings: Pretrain, data: Packed | None, seed: int) -> tuple[Objective, Image] | None:
    """The objective on the meta device, and the images it is for; None where their side is not known yet."""
    side = settings.view_size or (data.side if data else None)
    if side is None:
        return None
    channels = (data.channels if data else None) or 3
    image = Image(channels, side, (0.5,) * channels, (0.5,) * channels)
    world = World.single(device="meta")
    samples = settings.samples(data.images) if data else settings.train_examples or 1
    trunk = trunk_of(settings.net)
    here = trunk is None or not stage_named(trunk.init)  # the weights of another stage may not be there yet
    net = settings.net if here else changed(settings.net, init=None)
    with torch.device("meta"):
        return objectives.build(settings.objective, Setup(image, samples, net, world, seed)), image


def parameters(objective: Objective) -> int:
    """The number of trained parameters."""
    return sum(p.numel() for p in objective.parameters() if p.requires_grad)


def memory(settings: Pretrain, objective: Objective, image: Image) -> int:
    """Bytes that one process holds at the peak of a step: weights, gradients, optimiser state, memory banks, and the
    activations of one micro-batch saved for backward. Workspaces and the allocator's overhead are not counted."""
    trained = 4 * parameters(objective)
    states = {"sgd": 1, "lars": 1, "adam": 2}[settings.optimiser.kind]
    frozen = 4 * sum(p.numel() for p in objective.parameters()) - trained
    average = trained if settings.ema or settings.average else 0
    pieces = settings.place.workers if settings.weights == "sharded" else 1
    weights = (trained * (2 + states) + frozen + average) // pieces
    memories = sum(t.numel() * t.element_size() for t in objective.buffers())
    return weights + memories + saved_bytes(settings, objective, image)


def saved_bytes(settings: Pretrain, objective: Objective, image: Image) -> int:
    """Bytes saved for the backward pass of embedding one micro-batch, each storage once and without the weights (half
    as many under bf16), plus the bytes of the table of energies and its gradient. Where blocks are computed again, of
    all of them the inputs, and the inside of the largest."""
    rows = settings.batch // settings.accumulate // settings.place.workers
    shapes = transforms.build(settings.objective.inputs, settings.views, image, 0).view_shapes
    views = tuple(torch.empty(rows, *shape, device="meta") for shape in shapes)
    batch = Batch(views, torch.zeros(rows, dtype=torch.int64))
    objective.train()
    embedding, _ = embedding_bytes(objective, batch)
    with blocks.kept_whole(objective) as again:
        embedding += embedding_bytes(objective, batch, again)[1] if again else 0
    small = getattr(settings.views[0], "small", None)  # each small crop is a query, too
    queries = rows * (1 + small.count if small else 1)
    energies = 8 * objective.energy_count(queries, settings.batch)  # float32 energies and their gradient
    return energies + (embedding // 2 if settings.precision == "bf16" else embedding)


def embedding_bytes(objective: Objective, batch: Batch, parts: Iterable[nn.Module] = ()) -> tuple[int, int]:
    """Bytes of the storages that embedding a batch saves for the backward pass, without the weights; and of those that
    the largest of some parts saves of them."""
    seen: list[Tensor] = []  # kept alive, so that no new storage reuses the address of one already counted
    weights = {p.untyped_storage()._cdata for p in objective.parameters()}
    starts, largest = [], 0

    def size(tensors: list[Tensor]) -> int:
        storages = {x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in tensors}
        return sum(count for at, count in storages.items() if at not in weights)

    def begin(*_: object) -> None:
        starts.append(len(seen))

    def end(*_: object) -> None:
        nonlocal largest
        largest = max(largest, size(seen[starts.pop() :]))

    def note(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    hooks = [add(call) for part in parts for add, call in
             ((part.register_forward_pre_hook, begin), (part.register_forward_hook, end))]  # fmt: skip
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        result = objective.embed(batch)
    for hook in hooks:
        hook.remove()
    del result
    return size(seen), largest
