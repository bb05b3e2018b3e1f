"""Encoder-decoders: an image through a narrow latent and back."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from pipeline.image import Image
from pipeline.settings.objectives import Bottleneck


class Up(nn.Module):
    """Nearest-neighbour enlargement to a given side: an odd side is met exactly on the way back."""

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(x, size=(self.side, self.side), mode="nearest")


def _mlp(widths: list[int]) -> list[nn.Module]:
    """Linear layers with ReLU between them, none after the last."""
    layers: list[nn.Module] = []
    for before, width in pairwise(widths):
        layers += [nn.Linear(before, width), nn.ReLU()]
    return layers[:-1]


def _plan(settings: Bottleneck, image: Image) -> tuple[list[int], list[int]]:
    """Channels and sides before, between and after the stride-2 convolutions."""
    widths = [max(8, settings.width >> (settings.layers - 1 - i)) for i in range(settings.layers)]
    sides = [image.side]
    for _ in widths:
        sides.append(math.ceil(sides[-1] / 2))
    return [image.channels, *widths], sides


def encoder(settings: Bottleneck, image: Image, outputs: int) -> nn.Sequential:
    """[B, C, H, W] -> [B, outputs]."""
    if settings.shape == "mlp":
        hidden = [settings.width] * settings.layers
        return nn.Sequential(nn.Flatten(), *_mlp([image.channels * image.side**2, *hidden, outputs]))
    widths, sides = _plan(settings, image)
    layers: list[nn.Module] = []
    for before, width in pairwise(widths):
        layers += [nn.Conv2d(before, width, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * sides[-1] ** 2, outputs))


def decoder(settings: Bottleneck, image: Image) -> nn.Sequential:
    """[B, latent] -> [B, C, H, W], unbounded."""
    shape = (image.channels, image.side, image.side)
    if settings.shape == "mlp":
        hidden = [settings.width] * settings.layers
        return nn.Sequential(*_mlp([settings.latent, *hidden, math.prod(shape)]), nn.Unflatten(1, torch.Size(shape)))
    widths, sides = _plan(settings, image)
    small = torch.Size((widths[-1], sides[-1], sides[-1]))
    layers: list[nn.Module] = [nn.Linear(settings.latent, small.numel()), nn.Unflatten(1, small)]
    for width, after, side in zip(widths[::-1], widths[-2::-1], sides[-2::-1], strict=False):
        layers += [nn.ReLU(), Up(side), nn.Conv2d(width, after, 3, padding=1)]
    return nn.Sequential(*layers)
