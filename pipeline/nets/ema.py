"""Exponential moving averages of weights: momentum encoders (MoCo, BYOL), and what a training exports."""

import copy
import math
from collections.abc import Iterable

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


@torch.no_grad()
def distance(module: nn.Module, average: nn.Module) -> Tensor:
    """|| module - average || / || module || over all parameters, 0-d."""
    pairs = zip(module.parameters(), average.parameters(), strict=True)
    difference = torch.stack([(a - b).square().sum() for a, b in pairs]).sum()
    return (difference / torch.stack([a.square().sum() for a in module.parameters()]).sum()).sqrt()
