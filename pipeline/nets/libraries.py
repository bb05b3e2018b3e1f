"""Networks of torchvision and timm by their names: without classifier, with our batch norm under the same names."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from pipeline.errors import ConfigError, first_line
from pipeline.image import Image
from pipeline.nets import norm, pretrained
from pipeline.settings.nets import LibraryNet as Settings
from pipeline.world import World


class LibraryNet(nn.Module):
    """A library's ``model`` as a trunk: normalised images [B, C, H, W] -> ``features`` numbers each, [B, features]."""

    def __init__(self, settings: Settings, image: Image, world: World | None):
        super().__init__()
        build = of_timm if settings.kind == "timm" else of_torchvision
        self.model: Any = build(settings.name, image)
        if drawn := next(drawing(self.model), None):
            raise ConfigError(
                f"net.name: {settings.kind}'s {settings.name} draws numbers of its own in training ({drawn}), which "
                f"would depend on how many images a rank has; expected a network without"
                + ", as timm's are by default, but for a few" * (settings.kind == "torchvision")
            )
        self.features = width(self.model, settings.name, image)
        replace_norms(self.model, settings, world)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


def of_timm(name: str, image: Image) -> nn.Module:
    """The model of that name for such images, untrained. Raises ConfigError where timm has none, or none of that
    side."""
    config = pretrained.timm_config(name, "net.name")
    import timm

    sized: dict[str, Any] = {"img_size": image.side} if config is not None and config.fixed_input_size else {}
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, in_chans=image.channels, **sized)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise unfit(name, image, error) from None


def of_torchvision(name: str, image: Image) -> nn.Module:
    """The classifier of that name for such images, untrained, without what `changes` says. Raises ConfigError where
    torchvision has none."""
    model = classifier(name, image)
    for path, part in changes(model, name, image).items():
        model.set_submodule(path, part)
    return model


def classifier(name: str, image: Image) -> nn.Module:
    """torchvision's network of that name with its classifier; a vision transformer is for images of that side."""
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise ConfigError(f'net.name: torchvision has no classifier "{name}"{pretrained.near(name, known)}')
    sized = {"image_size": image.side} if name.startswith("vit_") else {}
    try:
        return models.get_model(name, weights=None, **sized)
    except (TypeError, ValueError, RuntimeError) as error:
        raise unfit(name, image, error) from None


def changes(model: nn.Module, name: str, image: Image) -> dict[str, nn.Module]:
    """What stands in the place of parts of torchvision's classifier, by their paths: nothing for its last linear layer
    and for the dropouts beside that; for other than three channels another first convolution."""
    linear = [path for path, part in model.named_modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise ConfigError(f"net.name: {name} of torchvision does not end in a linear layer; timm may have it")
    *above, _ = linear[-1].split(".")
    beside = model.get_submodule(".".join(above)).named_children()
    dropouts = [".".join([*above, child]) for child, part in beside if isinstance(part, _DropoutNd)]
    parts: dict[str, nn.Module] = {path: nn.Identity() for path in [linear[-1], *dropouts]}
    first, convolution = next((path, part) for path, part in model.named_modules() if isinstance(part, nn.Conv2d))
    if image.channels != convolution.in_channels:
        c: Any = convolution
        parts[first] = nn.Conv2d(
            image.channels, c.out_channels, c.kernel_size, c.stride, c.padding, c.dilation, bias=c.bias is not None
        )
    return parts


def drawing(model: nn.Module) -> Iterator[str]:
    """The parts of a network that draw random numbers in training: dropout and stochastic depth of any share."""
    for path, part in model.named_modules():
        shares = [getattr(part, name, 0) for name in ("drop_prob", "drop_rate", "dropout")]
        shares += [part.p] if isinstance(part, _DropoutNd) or type(part).__name__ == "StochasticDepth" else []
        if any(isinstance(share, int | float) and share > 0 for share in shares):
            yield f"{type(part).__name__} {path}".strip()


def width(model: nn.Module, name: str, image: Image) -> int:
    """The number of features of an image, by a forward pass of shapes alone. Raises ConfigError where the network does
    not take such images, or does not give one row for each."""
    state = {key: x.to("meta") for key, x in model.state_dict().items()}
    try:
        with torch.no_grad():
            rows = torch.func.functional_call(model, state, (torch.empty(2, *image.shape, device="meta"),))
    except (TypeError, ValueError, RuntimeError, AssertionError, NotImplementedError) as error:
        raise unfit(name, image, error) from None
    if not isinstance(rows, Tensor) or rows.ndim != 2 or len(rows) != 2:
        raise ConfigError(f"net.name: {name} gives more than one row of features for an image")
    return rows.shape[1]


def unfit(name: str, image: Image, error: Exception) -> ConfigError:
    shape = " x ".join(map(str, image.shape))
    return ConfigError(f"net.name: {name} does not take images of {shape}: {first_line(error)}")


class BatchNormAct(norm.BatchNorm):
    """timm's batch norm with the activation after it."""

    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        return self.act(super().forward(input))


def replace_norms(model: nn.Module, settings: Settings, world: World | None) -> None:
    """Puts our batch norm in the place of the library's, under the same names and with the same weights."""
    for path, part in list(model.named_modules()):
        if not isinstance(part, _BatchNorm):
            continue
        if settings.norm.kind == "none":
            raise ConfigError(f"net.norm.kind: none, but {settings.name} has batch norms; expected another kind")
        kind = BatchNormAct if hasattr(part, "act") else norm.BatchNorm
        ours = norm.build(settings.norm, part.num_features, world, kind, eps=part.eps, momentum=part.momentum)
        ours.load_state_dict(part.state_dict())
        if isinstance(ours, BatchNormAct):
            ours.act = part.act  # type: ignore[assignment]
        model.set_submodule(path, ours)
