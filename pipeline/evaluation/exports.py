"""An encoder as others load it: safetensors with timm's names, in the layout of timm and the Hugging Face Hub.

    model.safetensors   the backbone's weights, fp32, without a classifier
    config.json         architecture and preprocessing, as timm reads them
    README.md           the model card: how to load it and give it images, how it was trained, what a probe says of it
    model.onnx          if asked for: pixels to features, normalisation included, of any encoder
"""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from pipeline import files, tensors
from pipeline.errors import ConfigError, DataError
from pipeline.evaluation import cards, encoders
from pipeline.image import Image
from pipeline.nets import pretrained, trunks
from pipeline.objectives import models
from pipeline.settings.nets import LibraryNet, Portable, ResNet, ViT


def write(
    folder: Path | str, out: Path | str, onnx: bool = False, say: Callable[[str], None] = lambda text: None
) -> list[str]:
    """Writes the encoder of an artifact (or of one of its snapshots) to ``out``; returns the files' names. What timm
    and torchvision do not know is written as ONNX alone. ``say``: gets what others cannot do with it.

    Raises DataError where they do not know it and no ONNX is asked for, ConfigError where torch's exporter is missing.
    """
    folder, out = Path(folder), Path(out)
    encoder = encoders.load(folder)
    spec = json.loads((folder / models.SPEC).read_text())
    net = encoders.trunk_settings(spec)
    if not (onnx or isinstance(net, Portable)):
        what = net.kind if net else spec["objective"]["kind"] if "objective" in spec else "sparse code"
        raise DataError(
            f"{folder}: a {what} has no counterpart in timm or torchvision: expected a resnet, a vit, or one by name; "
            f"--onnx writes any encoder as ONNX, `pipeline embed` its features"
        )
    if onnx and find_spec("onnxscript") is None:
        raise ConfigError("--onnx needs torch's exporter: pip install 'pipeline[onnx]'")
    out.mkdir(parents=True, exist_ok=True)
    names = []
    if isinstance(net, Portable):
        names = ["model.safetensors", "config.json", "README.md"]
        tensors.write(weights(net, encoder.module), out / names[0], metadata={"format": "pt"})
        config = describe(net, encoder.image, encoder.module)
        (out / names[1]).write_text(json.dumps(config, indent=2) + "\n")
        (out / names[2]).write_text(cards.card(folder, net, encoder.image, config))
        if not native(net, encoder.image):
            say("timm's local-dir: cannot build this network; README.md holds the lines that load it")
    if onnx:
        names.append("model.onnx")
        write_onnx(encoder, out / names[-1])
    return names


def write_onnx(encoder: encoders.Encoder, path: Path) -> None:
    """images uint8 [N, C, S, S] -> features float32 [N, D], N free, weights inside the file (2 GB at most)."""
    image = encoder.image
    example = torch.zeros(2, image.channels, image.side, image.side, dtype=torch.uint8)
    shapes = {"images": {0: torch.export.Dim("N", min=1)}}
    with files.replacing(path) as part:
        torch.onnx.export(
            encoder, (example,), part, input_names=["images"], output_names=["features"], dynamic_shapes=shapes,
            external_data=False, verbose=False,
        )  # fmt: skip


def describe(net: Portable, image: Image, trunk: Any) -> dict[str, Any]:
    """timm's config.json. What timm cannot build is named so that `create_model` refuses it and says where to look."""
    name, sizes, first, last, pool = architecture(net, image, trunk)
    return {
        "architecture": name if native(net, image) else f"{name}, changed as its README says, which timm cannot do",
        "num_classes": 0,
        "num_features": trunk.features,
        **pool,
        "model_args": {"in_chans": image.channels, **sizes},
        "pretrained_cfg": {
            "input_size": [image.channels, image.side, image.side],
            "mean": list(image.mean),
            "std": list(image.std),
            "crop_pct": 0.875 if image.cropped else 1.0,
            "crop_mode": "center",
            "interpolation": "bilinear",
            "num_classes": 0,
            "first_conv": first,
            "classifier": last,
        },
    }


def architecture(net: Portable, image: Image, trunk: Any) -> tuple[str, dict[str, int], Any, Any, dict[str, str]]:
    """timm's name of a network, the sizes that its function is given, its first and last layers' names, and how its
    features are pooled, where that is to be told."""
    if isinstance(net, ResNet):
        return net.kind, {}, "conv1", "fc", {"global_pool": "avg"}
    if isinstance(net, ViT):  # any plain one: the sizes say the rest
        sizes = {"patch_size": net.patch, "embed_dim": net.width, "depth": net.depth, "num_heads": net.heads}
        pool = {"global_pool": "token"}
        return "vit_small_patch16_224", {"img_size": image.side} | sizes, "patch_embed.proj", "head", pool
    known = getattr(trunk.model, "pretrained_cfg", None) or {}
    sizes = {"img_size": image.side} if known.get("fixed_input_size") else {}
    return net.name.partition(".")[0], sizes, known.get("first_conv"), known.get("classifier"), {}


def native(net: Portable, image: Image) -> bool:
    """Whether timm builds the network from a config.json: its residual networks have no stem for small images, and
    group norms of 32 groups alone; torchvision's are others by the same names."""
    if isinstance(net, ResNet):
        return not (trunks.small_stem(net, image) or net.norm.kind == "none")
    return net.kind != "torchvision"


def weights(net: Portable, trunk: Any) -> dict[str, torch.Tensor]:
    """The weights by the names of timm, which for a ResNet are torchvision's."""
    rename = pretrained.timm_name if isinstance(net, ViT) else str
    module = trunk.model if isinstance(net, LibraryNet) else trunk
    return {rename(name): value for name, value in module.state_dict().items()}
