"""The projections from features to the space in which energies are measured."""

import torch
from torch import Tensor, nn

from pipeline.settings.objectives import Head


def build(settings: Head, features: int) -> nn.Sequential:
    """[B, features] -> [B, dim]: one linear layer (MoCo v1, PIRL), or two with ReLU between (MoCo v2, SimCLR)."""
    if settings.hidden == 0:
        return nn.Sequential(nn.Linear(features, settings.dim))
    return nn.Sequential(nn.Linear(features, settings.hidden), nn.ReLU(), nn.Linear(settings.hidden, settings.dim))


class PatchHead(nn.Module):
    """PIRL's g (arXiv 1912.01991, sec. 3.2): a head per patch, all joined in the order given by one linear layer."""

    def __init__(self, settings: Head, features: int, patches: int):
        super().__init__()
        self.each = build(settings, features)
        self.join = nn.Linear(patches * settings.dim, settings.dim)

    def forward(self, patches: Tensor) -> Tensor:
        """Features [B, patches, D], image-major -> [B, dim]."""
        return self.join(torch.flatten(self.each(patches), 1))
