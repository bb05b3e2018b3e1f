"""What a training is between two steps: objective, moving average and optimiser, from checkpoints and to them."""

import os
import shutil
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
    """``model``: what is called in training, the objective itself or, on several ranks, what averages its gradients.
    ``average``: of all that the finished model holds, by name, where one is asked for. ``skeleton``: the encoder on
    the meta device, where its weights are not the objective's own: averaged, or sharded. ``step``: steps done when
    this process started; ``folder``: of its checkpoints."""

    objective: Objective
    model: nn.Module
    optimiser: torch.optim.Optimizer
    average: dict[str, Tensor] | None
    skeleton: nn.Module | None
    step: int
    folder: Path

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """Parameters: average <- decay average + (1 - decay) parameter; statistics are copied."""
        if self.average is None:
            return
        current, parameters = self.objective.state_dict(), dict(self.objective.named_parameters())
        learned = [name for name in self.average if name in parameters]
        ema.update((self.average[name] for name in learned), (current[name] for name in learned), decay)
        for name in self.average.keys() - set(learned):
            self.average[name].copy_(current[name])

    def encoder(self) -> nn.Module:
        """The encoder that is exported, with full tensors. Called on all ranks together."""
        if self.skeleton is None:
            return self.objective.encoder
        (name,) = (name for name, part in self.objective.named_modules() if part is self.objective.encoder)
        encoder = deepcopy(self.skeleton)
        weights = {k.removeprefix(f"{name}."): x for k, x in self.weights().items() if k.startswith(f"{name}.")}
        encoder.load_state_dict(weights, assign=True)
        return encoder

    def weights(self) -> dict[str, Tensor]:
        """What a finished model is written with, as full tensors. Called on all ranks together."""
        weights = models.state(self.objective) if self.average is None else self.average
        return {name: sharded.full_tensor(x) for name, x in weights.items()}

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All full tensors that the rest of the training depends on, and the optimiser's numbers. Called on all ranks
        together."""
        tensors = {f"objective.{k}": v for k, v in self.objective.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{k}": v for k, v in self.average.items()}
        moments, numbers = checkpoint.pack_optimiser(self.optimiser)
        return {k: sharded.full_tensor(v) for k, v in (tensors | moments).items()}, numbers


def begin(objective: Objective, settings: Training, folder: Path, world: World) -> State:
    """The objective on its device and in its precision, as the newest checkpoint in ``folder`` has it, if there is
    one; sharded or wrapped for several ranks, with its average and its optimiser."""
    objective.to(world.device)
    if settings.precision == "fp64":
        objective.double()
    if settings.channels_last:
        objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if settings.compile:
        compile_networks(objective, settings.compile)
    found = checkpoint.newest(folder)
    if found is not None:
        objective.load_state_dict(saved(found[0], "objective."))
    cut = settings.weights == "sharded" and world.size > 1
    skeleton = deepcopy(objective.encoder).to("meta") if cut or settings.ema else None
    if cut:
        sharded.shard_modules(list(objective.children()), world)
    average = {name: x.clone() for name, x in models.state(objective).items()} if settings.ema else None
    if average is not None and found is not None:
        average = {name: sharded.shard_like(average[name], x) for name, x in saved(found[0], "average.").items()}
    model = (objective if cut else world.wrap(objective)).train()
    optimiser = optim.build(objective, settings)
    if found is not None:
        checkpoint.unpack_optimiser(optimiser, found[0], found[1]["optimiser"])
    return State(objective, model, optimiser, average, skeleton, int(found[1]["step"]) if found else 0, folder)


def compile_networks(objective: nn.Module, how: Literal[True, "graphs"] = True) -> None:
    """Has each network compiled to machine code at its first call; "graphs": on CUDA its kernels are also started by
    one call. Names and weights stay as they are."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        raise ConfigError("compile: true needs a C++ compiler, g++ or what CXX names: install one, or leave it out")
    for part in objective.children():
        part.compile(mode="reduce-overhead" if how == "graphs" else None)


def saved(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """Those of a checkpoint's tensors whose names begin with ``part``, without it."""
    return {name.removeprefix(part): x for name, x in tensors.items() if name.startswith(part)}


def save(state: State, step: int, settings: Training, seed: int, world: World, prune: bool = True) -> None:
    """Writes a checkpoint after ``step`` steps; with ``prune`` only the settings' number of them is kept. Called on
    all ranks together; none goes on before it is written."""
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
