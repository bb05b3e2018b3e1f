"""An encoder as others load it: safetensors with torchvision's names, in the layout of timm and the Hugging Face Hub.

    model.safetensors   the backbone's weights, fp32, without a classifier
    config.json         architecture and preprocessing, as timm reads them
    README.md           the model card: what it was trained on and how, and what a probe says of it
    model.onnx          if asked for: pixels to features, normalisation included, of any encoder
"""

import json
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from pipeline import tensors
from pipeline.errors import ConfigError, DataError
from pipeline.evaluation import encoders
from pipeline.image import Image
from pipeline.settings.nets import ResNet, ViT


def write(folder: Path, out: Path, onnx: bool = False) -> list[str]:
    """Writes the encoder of an artifact (or of one of its snapshots) to ``out``; returns the files' names. What timm
    and torchvision do not know is written as ONNX alone.

    Raises DataError where they do not know it and no ONNX is asked for, ConfigError where torch's exporter is missing.
    """
    encoder = encoders.load(folder)
    spec = json.loads((folder / encoders.SPEC).read_text())
    net = encoders.settings(spec) if spec["kind"] == "trunk" else None
    if not (onnx or isinstance(net, ResNet | ViT)):
        what = spec["kind"] if net is None else net.kind
        raise DataError(
            f"{folder}: a {what} has no counterpart in timm or torchvision; expected a resnet or a vit. --onnx writes "
            f"any encoder as ONNX, `pipeline embed` its features"
        )
    if onnx and find_spec("onnxscript") is None:
        raise ConfigError("--onnx needs torch's exporter: pip install 'pipeline[onnx]'")
    out.mkdir(parents=True, exist_ok=True)
    names = []
    if isinstance(net, ResNet | ViT):
        names = ["model.safetensors", "config.json", "README.md"]
        tensors.write(encoder.module.state_dict(), out / names[0], metadata={"format": "pt"})
        config = describe(net, encoder.image, encoder.module.features)  # type: ignore[arg-type]
        (out / names[1]).write_text(json.dumps(config, indent=2) + "\n")
        (out / names[2]).write_text(card(folder, config, small(net, encoder.image)))
    if onnx:
        names.append("model.onnx")
        write_onnx(encoder, out / names[-1])
    return names


def write_onnx(encoder: encoders.Encoder, path: Path) -> None:
    """images uint8 [N, C, S, S] -> features float32 [N, D], N free, weights inside the file (2 GB at most)."""
    image = encoder.image
    given = torch.zeros(2, image.channels, image.side, image.side, dtype=torch.uint8)
    shapes = {"images": {0: torch.export.Dim("N", min=1)}}
    with tempfile.TemporaryDirectory(dir=path.parent) as place:
        part = Path(place, path.name)
        torch.onnx.export(
            encoder, (given,), part, input_names=["images"], output_names=["features"], dynamic_shapes=shapes,
            external_data=False, verbose=False,
        )  # fmt: skip
        part.replace(path)


def small(net: ResNet | ViT, image: Image) -> bool:
    """Whether the first convolution is the small images' 3x3."""
    return isinstance(net, ResNet) and (net.stem == "small" or (net.stem == "auto" and image.side < 64))


def describe(net: ResNet | ViT, image: Image, features: int) -> dict[str, Any]:
    """timm's config.json."""
    first = "conv1" if isinstance(net, ResNet) else "conv_proj"
    return {
        "architecture": net.kind if isinstance(net, ResNet) else f"torchvision.VisionTransformer({net.model_dump()})",
        "num_classes": 0,
        "num_features": features,
        "global_pool": "avg" if isinstance(net, ResNet) else "token",
        "model_args": {"in_chans": image.channels},
        "pretrained_cfg": {
            "input_size": [image.channels, image.side, image.side],
            "mean": list(image.mean),
            "std": list(image.std),
            "crop_pct": 0.875,
            "interpolation": "bilinear",
            "num_classes": 0,
            "first_conv": first,
            "classifier": "fc" if isinstance(net, ResNet) else "heads",
        },
    }


RECIPE = """```python
import torch, torchvision
from safetensors.torch import load_file

model = torchvision.models.{architecture}()
{changes}model.fc = torch.nn.Identity()
model.load_state_dict(load_file("model.safetensors"))  # all keys
model.eval()  # images [B, {channels}, {side}, {side}] -> [B, {num_features}]
```

```python
import timm

model = timm.create_model("{architecture}", num_classes=0, in_chans={channels})
{changes}model.load_state_dict(load_file("model.safetensors"))
```
"""
SMALL = """model.conv1 = torch.nn.Conv2d({channels}, 64, 3, 1, 1, bias=False)  # the stem for small images
model.maxpool = torch.nn.Identity()
"""
GREY = "model.conv1 = torch.nn.Conv2d({channels}, 64, 7, 2, 3, bias=False)\n"


def card(folder: Path, config: dict[str, Any], stem: bool) -> str:
    """The model card, in Markdown."""
    channels, side, _ = config["pretrained_cfg"]["input_size"]
    changes = SMALL if stem else GREY if channels != 3 else ""
    facts = {k: config[k] for k in ("architecture", "num_features")} | {"channels": channels, "side": side}
    residual = config["architecture"].startswith("resnet")
    loading = RECIPE.format(**facts, changes=changes.format(**facts)) if residual else ""
    home = next((p for p in (folder, *folder.parents[:2]) if (p / "artifact.json").exists()), None)
    record = json.loads((home / "artifact.json").read_text()) if home else {}
    settings = record.get("settings", {})
    kind = settings.get("objective", {}).get("kind", "unknown")
    mean, std = (", ".join(f"{v:.4f}" for v in config["pretrained_cfg"][k]) for k in ("mean", "std"))
    return f"""---
library_name: timm
pipeline_tag: image-feature-extraction
tags: [self-supervised, {kind}]
---
# {config["architecture"]}, pretrained without labels by {kind}

Pixels / 255, then less ({mean}) over ({std}); {side} x {side}.

{loading}
## What a probe says
{results(home, record)}
## How it was trained
```json
{json.dumps({k: record[k] for k in ("stage", "key", "seed", "settings", "versions", "processes", "metrics") if k in record}, indent=1, sort_keys=True)}
```
"""  # noqa: E501


def results(home: Path | None, record: dict[str, Any]) -> str:
    """The rows of every finished probe beside the artifact that judged it, with the probe's protocol."""
    lines = []
    for path in sorted(home.parent.glob("*/artifact.json")) if home else []:
        probe = json.loads(path.read_text())
        rows = probe.get("metrics", {}).get("rows", {})
        if probe.get("kind") != "probe" or record.get("key") not in probe.get("inputs", {}).values():
            continue
        name = next(n for n, key in probe["inputs"].items() if key == record["key"])
        for row in (name, "raw_pixels", "random"):
            numbers = {k: v for k, v in sorted(rows.get(row, {}).items()) if isinstance(v, int | float)}
            lines.append(f"- {row}: {', '.join(f'{k} {v:.4f}' for k, v in numbers.items())}")
        protocol = {k: v for k, v in probe["settings"].items() if k not in ("kind", "encoders")}
        lines.append(f"- protocol: {json.dumps(protocol, sort_keys=True)}, seed {probe['seed']}")
    return "\n".join(lines or ["No probe has judged it yet."]) + "\n"
