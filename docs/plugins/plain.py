"""A network of one's own: 3x3 convolutions of one width, and the mean over the image."""

from itertools import pairwise

from torch import nn

import pipeline


class Settings(pipeline.NetworkSettings):
    """What a config can say of it."""

    any_side = True
    width: int = 32
    """Channels of every layer."""
    depth: int = 4
    """Layers."""


class Plain(pipeline.Network):
    """Convolutions, each with a norm and an activation, and the mean over the image."""

    Settings = Settings

    def __init__(self, settings: Settings, image, norm):
        super().__init__()
        widths = [image.channels, *[settings.width] * settings.depth]
        layers = []
        for before, width in pairwise(widths):
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), norm(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.features = settings.width

    def forward(self, images):
        """Normalised images [B, C, H, W] -> features [B, width]."""
        return self.layers(images).mean((2, 3))
