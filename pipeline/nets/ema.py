"""Exponential moving averages of weights: momentum encoders (MoCo, BYOL), and what a training exports."""

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pipeline.nets import norm
from pipeline.settings.nets import Net
from pipeline.settings.objectives import MomentumEncoder


@torch.no_grad()
def update(average: Iterable[Tensor], current: Iterable[Tensor], decay: float) -> None:
    """average <- decay average + (1 - decay) current, in place, tensor by tensor. An average that equals its tensor
    stays equal to the bit, which it would not by the formula as it is written."""
    for slow, fast in zip(average, current, strict=True):
        slow.lerp_(fast, 1 - decay)


def momentum_encoder(net: Net, *modules: nn.Module) -> list[nn.Module]:
    """Copies of modules with the same first weights, which no gradient trains. With norm.kind shuffle their batch
    norms take other blocks of the batch than the modules' own."""
    copies = [copy.deepcopy(module).requires_grad_(False) for module in modules]
    if net.norm.kind == "shuffle":
        for module in copies:
            norm.stride(module)
    return copies


def momentum(settings: MomentumEncoder, progress: float) -> float:
    """The decay of a momentum encoder once ``progress`` of training is done, 0 to 1."""
    if settings.momentum_schedule == "constant":
        return settings.momentum
    return 1 - (1 - settings.momentum) * 0.5 * (1 + math.cos(math.pi * progress))


def follow(settings: MomentumEncoder, progress: float, *pairs: tuple[nn.Module, nn.Module]) -> None:
    """Moves the parameters of momentum encoders towards those of the networks that they are averages of: pairs of the
    two."""
    for slow, fast in pairs:
        update(slow.parameters(), fast.parameters(), momentum(settings, progress))


@torch.no_grad()
def distance(module: nn.Module, average: nn.Module) -> Tensor:
    """|| module - average || / || module || over all parameters, 0-d."""
    pairs = zip(module.parameters(), average.parameters(), strict=True)
    difference = torch.stack([(a - b).square().sum() for a, b in pairs]).sum()
    return (difference / torch.stack([a.square().sum() for a in module.parameters()]).sum()).sqrt()


class Average:
    """The average of a module's trained parameters, ``tensors`` by their names in it; sharded as they are.

    Buffers have none: batch norm's running statistics are averages already, and a queue or a memory bank is no weight.
    """

    def __init__(self, module: nn.Module):
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.tensors = {name: p.detach().clone() for name, p in self.parameters.items()}

    def update(self, decay: float) -> None:
        update(self.tensors.values(), self.parameters.values(), decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the module has the averages for its parameters."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, p in self.parameters.items():
            current = p.clone()
            p.copy_(self.tensors[name])
            self.tensors[name].copy_(current)
