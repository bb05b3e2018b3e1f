"""The trunks: images to the features that are probed and exported."""

import math
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, UserError
from pipeline.image import Image
from pipeline.lines import say
from pipeline.nets import blocks, libraries, norm, pretrained, seeded
from pipeline.settings import nets as settings
from pipeline.settings.imports import OfAFile
from pipeline.settings.nets import CNN, MLP, DeepTrunk, LibraryNet, ResNet, ViT
from pipeline.world import World

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU}


class SmallCNN(nn.Module):
    """Blocks of 3x3 convolution, norm and activation, twice as wide each, the side halved from one to the next; at the
    end averaged over the image, or over the cells of a grid with a hidden layer on top."""

    def __init__(self, settings: CNN, channels: int, world: World | None):
        super().__init__()
        make, strided, bias = norm.layer(settings.norm, world), settings.halve == "stride", settings.norm.absent
        activation = ACTIVATIONS[settings.activation]
        widths = [settings.width << i for i in range(settings.depth)]
        layers: list[nn.Module] = []
        for before, width in zip([channels, *widths], widths, strict=False):
            convolution = nn.Conv2d(before, width, 3, 1 + strided, padding=1, bias=bias)
            layers += [convolution, make(width), activation(inplace=True)]
            if not strided:
                layers += [nn.MaxPool2d(2, ceil_mode=True)]  # rounds up: a patch of three pixels still has a side
        self.layers = nn.Sequential(*layers if strided else layers[:-1])
        self.features, self.grid, cells = widths[-1], settings.grid, settings.grid**2
        if cells:
            self.features = 2 * widths[-1]
            hidden = nn.Linear(cells * widths[-1], self.features, bias=bias)
            self.top = nn.Sequential(hidden, make(self.features), activation(inplace=True))

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [B, C, H, W] -> features [B, features]."""
        last = self.layers(images)
        if not self.grid:
            return last.mean((2, 3))
        return self.top(nn.functional.adaptive_avg_pool2d(last, self.grid).flatten(1))


class FullyConnected(nn.Sequential):
    """Linear layers with an activation after each, on all pixels: [B, C, H, W] -> [B, features]."""

    def __init__(self, settings: MLP, image: Image):
        activation = ACTIVATIONS[settings.activation]
        widths = [math.prod(image.shape), *[settings.width] * settings.layers]
        layers = [part for pair in pairwise(widths) for part in (nn.Linear(*pair), activation())]
        super().__init__(nn.Flatten(), *layers)
        self.features = settings.width


class Network(nn.Module):
    """A network of a user's own file: normalised images [B, C, H, W] -> features [B, features].

    Its constructor takes (settings, image, norm), where ``norm(channels)`` makes a norm layer as the settings say: a
    batch norm of torch's own would see no more than a rank's share."""

    Settings: ClassVar[type[settings.Network]]
    features: int


def build(net: Any, image: Image, world: World | None = None, seed: int = 0) -> Any:
    """The trunk that the settings name: a module from normalised images [B, C, H, W] to [B, D], with ``features`` = D.

    Its first weights are a function of (seed, settings) alone. Parameters of a residual network have torchvision's
    names, those of a library's network that library's, after ``model.``. Without a world, statistics are this
    process's own. Where the settings name an ``init``, its weights take the place of the first ones, and rank 0 says
    which are not used and which are not found.
    """
    with seeded(seed, "init", "trunk"):
        trunk = _untrained(net, image, world)
    model = trunk.model if isinstance(net, LibraryNet) else trunk
    if net.init is not None:
        line = pretrained.load(model, net.init, image)
        if world is None or world.main:
            say(line)
    if isinstance(net, DeepTrunk) and net.frozen:
        blocks.freeze(model, net.frozen)
    if isinstance(net, DeepTrunk) and net.checkpointing:
        blocks.recompute(model)
    return trunk


def _untrained(net: Any, image: Image, world: World | None) -> Any:
    if isinstance(net, OfAFile):
        return _own(net, image, world)
    if isinstance(net, CNN):
        return SmallCNN(net, image.channels, world)
    if isinstance(net, MLP):
        return FullyConnected(net, image)
    if isinstance(net, ViT):
        return _vit(net, image)
    if isinstance(net, LibraryNet):
        return libraries.LibraryNet(net, image, world)
    return _resnet(net, image, world)


def _own(net: Any, image: Image, world: World | None) -> Network:
    made: Network = net.made(net, image, norm.layer(net.norm, world))
    if not isinstance(getattr(made, "features", None), int):
        raise UserError(f"{net.kind} ({net.file.path}) sets no features: the width of what its forward gives")
    return made


def _resnet(net: ResNet, image: Image, world: World | None) -> Any:
    """torchvision's network (arXiv 1512.03385) with our norm, its classifier removed."""
    from torchvision import models

    trunk: Any = getattr(models, net.kind)(norm_layer=norm.layer(net.norm, world), zero_init_residual=net.zero_init)
    small = small_stem(net, image)
    if small or image.channels != 3:
        size, step, pad = (3, 1, 1) if small else (7, 2, 3)
        trunk.conv1 = nn.Conv2d(image.channels, 64, size, step, pad, bias=False)
        nn.init.kaiming_normal_(trunk.conv1.weight, mode="fan_out", nonlinearity="relu")
    if small:
        trunk.maxpool = nn.Identity()
    trunk.features = trunk.fc.in_features
    trunk.fc = nn.Identity()
    return trunk


def small_stem(net: ResNet, image: Image) -> bool:
    """Whether the first convolution is the small images' 3x3, without a pool after it."""
    return net.stem == "small" or (net.stem == "auto" and image.side < 64)


def _vit(net: ViT, image: Image) -> Any:
    """torchvision's transformer, its classifier removed, with MoCo v3's fixed position embedding and first weights
    (arXiv 2104.02057, sec. 4 and appendix A; vits.py of facebookresearch/moco-v3)."""
    from torchvision.models import VisionTransformer

    if image.side % net.patch:
        raise ConfigError(f"net.patch {net.patch} does not divide views of {image.side} pixels; change views.size")
    trunk: Any = VisionTransformer(image.side, net.patch, net.depth, net.heads, net.width, 4 * net.width)
    project: Any = nn.Conv2d(image.channels, net.width, net.patch, net.patch)
    bound = math.sqrt(6 / (image.channels * net.patch**2 + net.width))
    nn.init.uniform_(project.weight, -bound, bound)
    nn.init.zeros_(project.bias)
    trunk.conv_proj = project
    for part in trunk.encoder.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.MultiheadAttention):  # queries', keys' and values' weights are a matrix each
            bound = math.sqrt(6 / (2 * net.width))
            nn.init.uniform_(part.in_proj_weight, -bound, bound)
            nn.init.zeros_(part.in_proj_bias)
    nn.init.normal_(trunk.class_token, std=1e-6)
    trunk.encoder.pos_embedding = nn.Parameter(
        position_embedding(image.side // net.patch, net.width), requires_grad=False
    )
    trunk.conv_proj.requires_grad_(not net.frozen_patches)
    trunk.heads, trunk.features = nn.Identity(), net.width
    return trunk


def position_embedding(side: int, width: int) -> Tensor:
    """A zero row for the class token, then for each patch the sines and cosines of its column and of its row at
    width / 4 frequencies -> [1, 1 + side^2, width]."""
    positions = torch.arange(side, dtype=torch.float32)
    y, x = torch.meshgrid(positions, positions, indexing="ij")
    frequencies = 10000.0 ** (-torch.arange(width // 4) / (width // 4))
    columns, rows = (axis.flatten()[:, None] * frequencies for axis in (x, y))
    table = torch.cat([columns.sin(), columns.cos(), rows.sin(), rows.cos()], 1)
    return torch.cat([torch.zeros(1, width), table])[None]


def embed_patches(trunk: nn.Module, patches: Tensor) -> Tensor:
    """Patches [B, P, C, h, w], image-major -> features [B, P, D]."""
    return torch.unflatten(trunk(patches.flatten(0, 1)), 0, patches.shape[:2])
