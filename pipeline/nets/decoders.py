"""Decoders: from a latent back to an image."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from pipeline.image import Image
from pipeline.nets.trunks import ACTIVATIONS
from pipeline.settings.objectives import Decoder


class Up(nn.Module):
    """Nearest-neighbour enlargement to a given side: an odd side is met exactly on the way back."""

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(x, size=(self.side, self.side), mode="nearest")


def build(settings: Decoder, latent: int, image: Image) -> nn.Sequential:
    """[B, latent] -> [B, C, H, W], unbounded."""
    return (_convolutional if settings.kind == "conv" else _fully_connected)(settings, latent, image)


def _fully_connected(settings: Decoder, latent: int, image: Image) -> nn.Sequential:
    widths = [latent, *[settings.width] * settings.layers, math.prod(image.shape)]
    activation = ACTIVATIONS[settings.activation]
    layers = [part for pair in pairwise(widths) for part in (nn.Linear(*pair), activation())]
    return nn.Sequential(*layers[:-1], nn.Unflatten(1, torch.Size(image.shape)))


def _convolutional(settings: Decoder, latent: int, image: Image) -> nn.Sequential:
    """From the smallest side up to the image's, the channels halved from one to the next (8 at least)."""
    sides, widths = [image.side], [image.channels]
    for i in range(settings.layers):
        sides.append(math.ceil(sides[-1] / 2))
        widths.append(max(8, settings.width >> (settings.layers - 1 - i)))
    small = torch.Size((widths[-1], sides[-1], sides[-1]))
    layers: list[nn.Module] = [nn.Linear(latent, small.numel()), nn.Unflatten(1, small)]
    for width, after, side in zip(widths[::-1], widths[-2::-1], sides[-2::-1], strict=False):
        layers += [ACTIVATIONS[settings.activation](), Up(side), nn.Conv2d(width, after, 3, padding=1)]
    return nn.Sequential(*layers)
