"""The trunks: images to the features that are probed and exported."""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.image import Image
from pipeline.nets import norm, seeded
from pipeline.settings.nets import CNN, Net, ResNet
from pipeline.world import World


class SmallCNN(nn.Module):
    """Blocks of 3x3 convolution, norm and ReLU, twice as wide each; max-pooled between, averaged at the end."""

    def __init__(self, settings: CNN, channels: int, world: World | None):
        super().__init__()
        make = norm.layer(settings.norm, world)
        widths = [settings.width << i for i in range(settings.depth)]
        layers: list[nn.Module] = []
        for before, width in zip([channels, *widths], widths, strict=False):
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), make(width), nn.ReLU(inplace=True)]
            layers += [nn.MaxPool2d(2, ceil_mode=True)]  # rounds up: a patch of three pixels still has a side
        self.layers = nn.Sequential(*layers[:-1])
        self.features = widths[-1]

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [B, C, H, W] -> features [B, features]."""
        return self.layers(images).mean((2, 3))


def build(net: Net, image: Image, world: World | None = None, seed: int = 0) -> Any:
    """The trunk that the settings name: a module from normalised images [B, C, H, W] to [B, D], with ``features`` = D.

    Its first weights are a function of (seed, settings) alone. Parameters of a residual network have torchvision's
    names. Without a world, statistics are this process's own.
    """
    with seeded(seed, "init", "trunk"):
        if isinstance(net, CNN):
            return SmallCNN(net, image.channels, world)
        return _resnet(net, image, world)


def _resnet(net: ResNet, image: Image, world: World | None) -> Any:
    """torchvision's network (arXiv 1512.03385) with our norm, its classifier removed."""
    from torchvision import models

    trunk: Any = getattr(models, net.kind)(norm_layer=norm.layer(net.norm, world))
    small = net.stem == "small" or (net.stem == "auto" and image.side < 64)
    if small or image.channels != 3:
        size, step, pad = (3, 1, 1) if small else (7, 2, 3)
        trunk.conv1 = nn.Conv2d(image.channels, 64, size, step, pad, bias=False)
        nn.init.kaiming_normal_(trunk.conv1.weight, mode="fan_out", nonlinearity="relu")
    if small:
        trunk.maxpool = nn.Identity()
    trunk.features = trunk.fc.in_features
    trunk.fc = nn.Identity()
    return trunk


def embed_patches(trunk: nn.Module, patches: Tensor) -> Tensor:
    """Patches [B, P, C, h, w], image-major -> features [B, P, D]."""
    return torch.unflatten(trunk(patches.flatten(0, 1)), 0, patches.shape[:2])
