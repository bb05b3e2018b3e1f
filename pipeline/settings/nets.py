"""The trunks: what turns an image into the features that are probed and exported."""

from typing import Annotated, Literal

from pydantic import Field

from .base import Count, Settings


class Norm(Settings):
    """Which images a batch norm takes its statistics from."""

    kind: Literal["global", "split", "local", "none"] = "global"
    """global: the whole batch over all ranks; split: blocks of the global batch by position (MoCo's leak guard on
    one device); local: each rank's own share (depends on the number of ranks); none: group norm instead."""
    splits: Count = 1
    """Blocks of the global batch, for split."""
    groups: Count = 8
    """Groups of the group norm, for none."""


class CNN(Settings):
    """A small convolutional network for small images: blocks of 3x3 convolution, norm and ReLU, pooled in between."""

    kind: Literal["cnn"] = "cnn"
    width: Count = 32
    """Channels of the first block; each later block has twice as many as the one before."""
    depth: Annotated[int, Field(ge=1, le=5)] = 3
    """Blocks; the side halves after every block but the last."""
    norm: Norm = Norm()


class ResNet(Settings):
    """torchvision's residual networks (arXiv 1512.03385) without their classifier."""

    kind: Literal["resnet18", "resnet50"] = "resnet18"
    stem: Literal["auto", "imagenet", "small"] = "auto"
    """imagenet: 7x7 stride 2 and max-pool; small: 3x3 stride 1 without pool; auto: small below 64 pixels."""
    norm: Norm = Norm()


Net = Annotated[CNN | ResNet, Field(discriminator="kind")]
