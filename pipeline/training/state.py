"""The state of a training between two steps (objective, average of the weights, optimiser), and its checkpoints."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.nets import ema
from pipeline.objectives import models
from pipeline.objectives.base import Objective
from pipeline.settings.training import Training
from pipeline.training import checkpoint, optim, sharded
from pipeline.world import World


@dataclass(frozen=True)
class State:
    """The state of a training. ``model``: the objective or, on several ranks, the DDP module around it. ``average``:
    of the trained parameters, if the settings ask for one. ``skeleton``: a copy of the encoder on the meta device,
    where weights are sharded. ``step``: steps done before this process started; ``folder``: of the checkpoints."""

    objective: Objective
    model: nn.Module
    optimiser: torch.optim.Optimizer
    average: ema.Average | None
    skeleton: nn.Module | None
    step: int
    folder: Path

    def update_average(self, settings: Training, step: int, total: int) -> None:
        """Updates the average with the weights after ``step``: an exponential moving average, or the mean over the
        last share of the steps (until then, the weights)."""
        if self.average is not None:
            count = step + 1 - round((1 - settings.average) * total)
            self.average.update(settings.ema or 1 - 1 / max(1, count))

    @contextmanager
    def encoder(self) -> Iterator[nn.Module]:
        """Yields the encoder with full tensors and, if there is an average, with averaged weights inside the block.
        All ranks call it together."""
        with self.average.swapped() if self.average else nullcontext():
            encoder = self.objective.encoder
            yield sharded.unsharded_copy(self.skeleton, encoder) if self.skeleton else encoder

    def weights(self) -> dict[str, Tensor]:
        """The weights to write to a model, averaged if there is an average, as full tensors. All ranks call it
        together."""
        weights = models.state(self.objective)
        if self.average is not None:
            weights |= {k: x for k, x in self.average.tensors.items() if k in weights}
        return {name: sharded.full_tensor(x) for name, x in weights.items()}

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors of a checkpoint, as full tensors, and the optimiser's scalars. All ranks call it together."""
        tensors = {f"objective.{k}": v for k, v in self.objective.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{k}": v for k, v in self.average.tensors.items()}
        moments, numbers = checkpoint.pack_optimiser(self.optimiser)
        return {k: sharded.full_tensor(v) for k, v in (tensors | moments).items()}, numbers


def begin(objective: Objective, settings: Training, folder: Path, world: World) -> State:
    """Moves the objective to its device and precision, restores the newest checkpoint in ``folder`` if there is one,
    shards or wraps the objective for several ranks, and builds its average and optimiser."""
    objective.to(world.device)
    if settings.precision == "fp64":
        objective.double()
    if settings.channels_last:
        objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if settings.compile:
        compile_networks(objective, settings.compile)
    newest = checkpoint.newest(folder)
    tensors, record = newest or ({}, {"step": 0})
    if newest is not None:
        objective.load_state_dict(named(tensors, "objective."))
    skeleton = None
    if settings.weights == "sharded" and world.size > 1:
        skeleton = deepcopy(objective.encoder).to("meta")
        sharded.shard_modules(objective.children(), world)
    model = (world.wrap(objective) if skeleton is None else objective).train()
    average = ema.Average(objective) if settings.ema or settings.average else None
    optimiser = optim.build(objective, settings)
    if newest is not None:
        checkpoint.unpack_optimiser(optimiser, tensors, record["optimiser"])
        if average is not None:
            saved = named(tensors, "average.")
            average.tensors = {k: sharded.shard_like(x, saved[k]) for k, x in average.tensors.items()}
    return State(objective, model, optimiser, average, skeleton, int(record["step"]), folder)


def named(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, by their names without it."""
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def compile_networks(objective: nn.Module, how: Literal[True, "graphs"] = True) -> None:
    """Makes torch.compile compile each network at its first call; "graphs": with CUDA graphs. Names and weights do not
    change. Raises ConfigError where there is no C++ compiler."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        raise ConfigError("compile: true needs a C++ compiler, g++ or what CXX names: install one, or leave it out")
    for part in objective.children():
        part.compile(mode="reduce-overhead" if how == "graphs" else None)


def save(state: State, step: int, settings: Training, seed: int, world: World, prune: bool = True) -> None:
    """Writes a checkpoint after ``step`` steps. ``prune``: only the newest ``settings.keep`` are kept. All ranks call
    it together, and none returns before it is written."""
    tensors, numbers = state.tensors()
    if world.main:
        record = {
            "seed": seed,
            "position": step * settings.batch,
            "optimiser": numbers,
            "settings": settings.model_dump(mode="json", exclude={"place"}),
            "torch": str(torch.__version__),
        }
        keep = settings.keep if prune else len(checkpoint.steps(state.folder)) + 1
        checkpoint.save(state.folder, step, tensors, record, keep)
    world.barrier()
