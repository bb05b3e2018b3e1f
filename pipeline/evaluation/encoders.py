"""Encoders as files: weights in safetensors, what they are in JSON; read back, uint8 images in, features out."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline import files, objectives, tensors
from pipeline.errors import DataError
from pipeline.image import Image
from pipeline.nets import trunks
from pipeline.objectives.base import Setup
from pipeline.settings.nets import Net, Norm
from pipeline.settings.objectives import Generative
from pipeline.settings.sparse import Coding
from pipeline.sparse import features as sparse

WEIGHTS, SPEC = "encoder.safetensors", "encoder.json"


class Encoder(nn.Module):
    """A module as it is judged: uint8 images [B, C, H, W] -> float32 features [B, D]. ``normalised``: whether the
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


def save(folder: Path, kind: str, module: nn.Module, spec: dict[str, Any]) -> None:
    """Writes `encoder.safetensors` and `encoder.json` (last, so that a folder with it is whole)."""
    with files.replacing(folder / WEIGHTS) as part:
        tensors.write(module.state_dict(), part)
    files.write_json(folder / SPEC, {"kind": kind, **spec})


def load(folder: Path | str) -> Encoder:
    """The encoder in a folder, in evaluation mode. Raises DataError where there is none, or a damaged one."""
    folder = Path(folder).expanduser()
    try:
        spec = json.loads((folder / SPEC).read_text())
        weights = load_file(folder / WEIGHTS)
        image = TypeAdapter(Image).validate_python(spec["image"])
        module, normalised = rebuild(spec, image)
        dtype = next((v.dtype for v in weights.values() if v.is_floating_point()), torch.float32)
        module.to(dtype).load_state_dict(weights)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise DataError(f"{folder}: no encoder that can be read ({type(error).__name__}: {error})") from error
    return Encoder(module.float(), image, normalised).eval().requires_grad_(False)


def settings(spec: dict[str, Any]) -> Net:
    """The net's settings in a trunk's spec."""
    return TypeAdapter(Net).validate_python(spec["net"])


def rebuild(spec: dict[str, Any], image: Image, seed: int = 0) -> tuple[nn.Module, bool]:
    """The module of a spec with its first weights, and whether it takes normalised images."""
    if spec["kind"] == "trunk":
        return trunks.build(settings(spec), image, None, seed), True
    if spec["kind"] == "autoencoder":
        chosen = TypeAdapter(Generative).validate_python(spec["objective"])
        setup: Any = Setup(image, 0, Norm(), None, seed)  # type: ignore[arg-type]
        return objectives.build(chosen, setup).encoder, False
    if spec["kind"] == "sparse":
        codes = Coding.model_validate(spec["codes"])
        if "inner" not in spec:
            return sparse.SparseFeatures(sparse.blank(codes, image.channels * codes.patch**2)), False
        inner, normalised = rebuild(spec["inner"], image)
        coded = Encoder(inner, image, normalised)
        return sparse.CodedFeatures(coded, sparse.blank(codes, inner.features)), False  # type: ignore[arg-type]
    raise ValueError(f"kind {spec['kind']!r} is none of trunk, autoencoder, sparse")


def network(folder: Path) -> dict[str, Any] | None:
    """The spec of the network under the encoder in a folder: equal for two that differ in their weights alone, or in
    which images batch norm saw in training. None under codes of patches, which have no network."""
    try:
        return bare(json.loads((folder / SPEC).read_text()))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder}: no encoder that can be read ({type(error).__name__}: {error})") from error


def bare(spec: dict[str, Any]) -> dict[str, Any] | None:
    """Of an encoder's spec, what its untrained network depends on."""
    if spec["kind"] == "sparse":
        return bare(spec["inner"]) if "inner" in spec else None
    if spec["kind"] == "autoencoder":
        kept = {k: spec["objective"][k] for k in ("kind", "net")}
        return {"kind": "autoencoder", "objective": kept, "image": spec["image"]}
    net = settings(spec)
    if net.norm.kind != "none":
        net = net.model_copy(update={"norm": Norm()})
    return {"kind": "trunk", "net": net.model_dump(mode="json"), "image": spec["image"]}


def untrained(network: dict[str, Any], seed: int) -> Encoder:
    """A network with its random first weights: what an encoder is worth before it has learned."""
    image = TypeAdapter(Image).validate_python(network["image"])
    module, normalised = rebuild(network, image, seed)
    return Encoder(module, image, normalised).eval().requires_grad_(False)


class Pixels(nn.Module):
    """The image itself as features: [B, C, H, W] -> [B, C H W]."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def pixels(image: Image) -> Encoder:
    return Encoder(Pixels(), image, False).eval()
