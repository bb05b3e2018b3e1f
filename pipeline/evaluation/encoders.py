"""Encoders: models as they are evaluated, uint8 images in, features out."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.image import Image
from pipeline.nets import energies, trunks
from pipeline.objectives import models
from pipeline.settings.nets import EnergyNet, Net, Norm
from pipeline.settings.sparse import Coding
from pipeline.sparse import features as sparse


class Encoder(nn.Module):
    """A module as it is evaluated: uint8 images [B, C, H, W] -> float32 features [B, D]. ``normalised``: whether the
    module takes pixels less their mean over their deviation, or in [0, 1]."""

    def __init__(self, module: nn.Module, image: Image, normalised: bool):
        super().__init__()
        self.module, self.image, self.normalised = module, image, normalised

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        x = images.float() / 255
        if self.normalised:
            x = self.image.normalise(x)
        return self.module(x).float()


def describe(image: Image) -> dict[str, Any]:
    """An Image as JSON."""
    return asdict(image)


def save(folder: Path, module: nn.Module, spec: dict[str, Any]) -> None:
    """Writes a network that no objective of ours trained, as a model whose spec names a ``net`` alone or ``codes``."""
    models.write(folder, module.state_dict(), spec)


def load(folder: Path | str) -> Encoder:
    """The encoder of the model in a folder, in evaluation mode. Raises DataError where there is none, or a damaged
    one."""
    folder = Path(folder).expanduser()
    spec, weights = models.read(folder)
    try:
        return restore(spec, weights)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise models.unreadable(folder, error) from error


def load_projection(folder: Path) -> Encoder | None:
    """The encoder and its head of the model in a folder as one, in evaluation mode; None where it has no head."""
    spec, weights = models.read(folder)
    if "objective" not in spec:
        return None
    try:
        objective = models.restore(spec, weights)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise models.unreadable(folder, error) from error
    if objective.projection is None:
        return None
    joined = nn.Sequential(objective.encoder, objective.projection)
    return frozen(joined, models.image(spec), objective.normalised)


def restore(spec: dict[str, Any], weights: dict[str, Tensor]) -> Encoder:
    if "objective" in spec:
        objective = models.restore(spec, weights)
        return frozen(objective.encoder, models.image(spec), objective.normalised)
    encoder = build(spec)
    encoder.module.to(models.dtype(weights.values())).load_state_dict(weights)
    return frozen(encoder.module.float(), encoder.image, encoder.normalised)


def frozen(module: nn.Module, image: Image, normalised: bool) -> Encoder:
    return Encoder(module, image, normalised).eval().requires_grad_(False)


def build(spec: dict[str, Any], seed: int = 0) -> Encoder:
    """The encoder of a spec with its first weights."""
    image = models.image(spec)
    if "objective" in spec:
        objective = models.build(spec, seed)
        return Encoder(objective.encoder, image, objective.normalised)
    if "codes" not in spec:
        net = models.net_settings(spec)
        of_energy = isinstance(net, EnergyNet)
        module = energies.build(net, image, seed) if of_energy else trunks.build(net, image, None, seed)
        return Encoder(module, image, spec.get("normalised", True))
    codes = Coding.model_validate(spec["codes"])
    if "inner" not in spec:
        return Encoder(sparse.SparseFeatures(sparse.blank(codes, image.channels * codes.patch**2)), image, False)
    inner = build(spec["inner"])
    blank: Any = sparse.blank(codes, inner.module.features)  # type: ignore[arg-type]
    return Encoder(sparse.CodedFeatures(inner, blank), image, False)


def trunk_settings(spec: dict[str, Any]) -> Net | None:
    """The settings of the net that a spec's encoder is; None where it is more than a net."""
    is_net = "net" in spec and ("objective" not in spec or not models.objective_class(spec).encoder_fields)
    return models.net_settings(spec) if is_net else None


def network(folder: Path) -> dict[str, Any] | None:
    """The spec of the network under the encoder in a folder: equal for two that differ in their weights alone, or in
    which images batch norm saw in training. None under codes of patches, which have no network."""
    try:
        return bare(models.read_spec(folder))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise models.unreadable(folder, error) from error


def bare(spec: dict[str, Any]) -> dict[str, Any] | None:
    """The part of a spec that decides its untrained encoder."""
    if "codes" in spec:
        return bare(spec["inner"]) if "inner" in spec else None
    net = models.net_settings(spec)
    if net.norm.kind != "none":
        net = net.model_copy(update={"norm": Norm()})
    network: dict[str, Any] = {"net": net.model_dump(mode="json"), "image": spec["image"]}
    if "objective" in spec:
        kind = models.objective_class(spec)
        if kind.encoder_fields:
            network["objective"] = {name: spec["objective"][name] for name in ("kind", *kind.encoder_fields)}
        elif not kind.normalised:
            network["normalised"] = False
    kinds = [network[part]["kind"] for part in ("net", "objective") if part in network]
    files = {name: spec["imports"][name] for name, colon, _ in (kind.partition(":") for kind in kinds) if colon}
    return network | ({"imports": files} if files else {})


def untrained(network: dict[str, Any], seed: int) -> Encoder:
    """A network with its random first weights: what an encoder is worth before it has learned."""
    return build(network, seed).eval().requires_grad_(False)


class Pixels(nn.Module):
    """The image itself as features: [B, C, H, W] -> [B, C H W]."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def pixels(image: Image) -> Encoder:
    return frozen(Pixels(), image, False)
