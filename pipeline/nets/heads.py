"""The projections from features to the space in which energies are measured."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from pipeline.nets import norm
from pipeline.settings.nets import Norm
from pipeline.settings.objectives import Head
from pipeline.world import World


def build(settings: Head, features: int, norms: Norm | None = None, world: World | None = None) -> nn.Sequential:
    """[B, features] -> [B, dim]: one linear layer (MoCo v1, PIRL), or several with activations between (MoCo v2,
    SimCLR)."""
    if settings.hidden == 0:
        return nn.Sequential(nn.Linear(features, settings.dim))
    make: Callable[[int], Any] = norm.layer(norms or Norm(), world)
    widths = [features, *[settings.hidden] * (settings.layers - 1), settings.dim]
    layers: list[nn.Module] = []
    for i, (before, width) in enumerate(pairwise(widths)):
        last = i == len(widths) - 2
        normed = settings.norm in ("all", "scaled") or (settings.norm == "hidden" and not last)
        layers.append(nn.Linear(before, width, bias=not normed))
        if normed:
            layers.append(without_shift(make(width), settings.norm == "scaled") if last else make(width))
        if not last:
            layers.append(nn.ReLU(inplace=True) if settings.activation == "relu" else nn.GELU())
    return nn.Sequential(*layers)


def without_shift(layer: nn.Module, scaled: bool) -> nn.Module:
    """The norm without its shift and, unless ``scaled``, without its scale."""
    layer.bias = None  # type: ignore[assignment]
    if not scaled:
        layer.weight, layer.affine = None, False  # type: ignore[assignment]
    return layer


class PatchHead(nn.Module):
    """PIRL's g (arXiv 1912.01991, sec. 3.2): a head per patch, all joined in the order given by one linear layer."""

    def __init__(self, each: nn.Module, dim: int, patches: int):
        super().__init__()
        self.each = each
        self.join = nn.Linear(patches * dim, dim)

    def forward(self, patches: Tensor) -> Tensor:
        """Features [B, patches, D], image-major -> [B, dim]."""
        # Flattened, so that a batch norm inside sees rows; a sample's patches stay next to each other.
        each = self.each(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])
        return self.join(torch.flatten(each, 1))


class Prototypes(nn.Module):
    """Directions that embeddings are compared with (DINO's last layer): a linear layer whose weights have length 1."""

    def __init__(self, dim: int, count: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, dim))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)  # as of a linear layer

    def forward(self, rows: Tensor) -> Tensor:
        """Unit rows [..., dim] -> cosines [..., count]."""
        return rows @ normalize(self.weight, dim=1).T
