"""Model cards: how an exported encoder is loaded and given images, how it was trained, what a probe says of it."""

import json
from pathlib import Path
from typing import Any

import yaml

from pipeline.evaluation import names
from pipeline.image import Image
from pipeline.nets import libraries, trunks
from pipeline.settings.nets import LibraryNet, Portable, ResNet

IMAGES = """```python
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as F


def pixels(path):  # as the probe has them: of {side} x {side} pixels as they are, others by their centre
    image = {opened}.convert("{mode}")
    image = F.pil_to_tensor(image)
    if image.shape[1:] != ({side}, {side}):
        image = F.center_crop(F.resize(image, [{resized}], antialias=True), [{side}, {side}])
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in ({mean}, {std}))
    return (image / 255 - mean) / std


@torch.no_grad()
def features(model, paths):  # -> float32 [n, {num_features}]
    return model.eval()(torch.stack([pixels(path) for path in paths]))
```
"""
TORCHVISION = """```python
{imports}import torch, torchvision
from safetensors.torch import load_file

model = torchvision.models.{kind}({norm})
{changes}model.fc = torch.nn.Identity()
model.load_state_dict(load_file("model.safetensors"))  # all keys
```
"""
LIBRARY = """```python
import torch, torchvision
from safetensors.torch import load_file

model = torchvision.models.get_model("{name}", weights=None{size})
{changes}model.load_state_dict(load_file("model.safetensors"))  # all keys
```
"""
TIMM = """```python
import timm

model = timm.create_model("local-dir:.", pretrained=True)  # here, or "hf-hub:..." once it is on the Hub
```
"""
CHANGED = """```python
import timm, torch  # local-dir: cannot make these changes
from safetensors.torch import load_file

model = timm.create_model("{kind}", num_classes=0, in_chans={channels})
{changes}model.load_state_dict(load_file("model.safetensors"))
```
"""
SMALL = """model.conv1 = torch.nn.Conv2d({channels}, 64, 3, 1, 1, bias=False)  # the stem for small images
model.maxpool = torch.nn.Identity()
"""
GREY = "model.conv1 = torch.nn.Conv2d({channels}, 64, 7, 2, 3, bias=False)\n"


def card(folder: Path, net: Portable, image: Image, config: dict[str, Any]) -> str:
    """The model card of an encoder's folder, in Markdown."""
    home = next((p for p in (folder, *folder.parents[:2]) if (p / "artifact.json").exists()), None)
    record = json.loads((home / "artifact.json").read_text()) if home else {}
    probes = evaluations(home, record) if home else []
    settings = record.get("settings", {})
    objective = settings.get("objective", {}).get("kind", "unknown")
    recorded = ("stage", "key", "seed", "settings", "versions", "processes", "metrics")
    facts = json.dumps({k: record[k] for k in recorded if k in record}, indent=1, sort_keys=True)
    return f"""---
library_name: timm
pipeline_tag: image-feature-extraction
tags: [self-supervised, {objective}]
{model_index(f"{named(net)}-{objective}", home, probes)}---
# {named(net)}, pretrained without labels by {objective}

{recipe(net, image, config["num_features"])}
## What a probe says
{results(probes)}
## How it was trained
```json
{facts}
```
"""


def named(net: Portable) -> str:
    if isinstance(net, LibraryNet):
        return net.name
    if isinstance(net, ResNet):
        return net.kind
    return f"vit of width {net.width}, {net.depth} blocks of {net.heads} heads, patches of {net.patch} pixels"


def recipe(net: Portable, image: Image, features: int) -> str:
    """How the encoder is loaded, in every library that can, and how it is given images."""
    opened = "ImageOps.exif_transpose(Image.open(path))" if image.exif_orientation else "Image.open(path)"
    mode = "L" if image.channels == 1 else "RGB"
    shown = IMAGES.format(
        side=image.side, opened=opened, mode=mode, resized=image.side * 8 // 7, mean=list(image.mean),
        std=list(image.std), num_features=features,
    )  # fmt: skip
    if isinstance(net, LibraryNet) and net.kind == "torchvision":
        return f"{shown}\n{library(net, image)}"
    if not isinstance(net, ResNet):
        return f"{shown}\n{TIMM}"
    stem = trunks.small_stem(net, image)
    changes = (SMALL if stem else GREY if image.channels != 3 else "").format(channels=image.channels)
    group = net.norm.kind == "none"
    groups = f"math.gcd({net.norm.groups}, channels)"
    norm = f"norm_layer=lambda channels: torch.nn.GroupNorm({groups}, channels)" if group else ""
    loaded = TORCHVISION.format(imports="import math\n" if group else "", kind=net.kind, norm=norm, changes=changes)
    if group:
        return f"{shown}\n{loaded}"  # timm's norms are called with more arguments, by version
    theirs = CHANGED.format(kind=net.kind, channels=image.channels, changes=changes) if stem else TIMM
    return f"{shown}\n{loaded}\n{theirs}"


def library(net: LibraryNet, image: Image) -> str:
    """How a network of torchvision is loaded: what stands in the place of its classifier is said part by part."""
    changes = libraries.changes(libraries.classifier(net.name, image), net.name, image)
    lines = [f'model.set_submodule("{path}", torch.nn.{part!r})\n' for path, part in changes.items()]
    size = f", image_size={image.side}" if net.name.startswith("vit_") else ""
    return LIBRARY.format(name=net.name, size=size, changes="".join(lines))


def evaluations(home: Path, record: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Every finished probe beside an artifact that evaluated it, and the artifact's row there."""
    found = []
    for path in sorted(home.parent.glob("*/artifact.json")):
        probe = json.loads(path.read_text())
        if probe.get("kind") == "probe" and record.get("key") in probe.get("inputs", {}).values():
            found.append((next(n for n, key in probe["inputs"].items() if key == record["key"]), probe))
    return found


def results(probes: list[tuple[str, dict[str, Any]]]) -> str:
    """The rows of `evaluations`, with what they are held against and the probes' protocols."""
    lines = []
    for name, probe in probes:
        rows = probe["metrics"]["rows"]
        for row in (r for r in (name, f"{name}_projection", "raw_pixels", "random") if r in rows):
            numbers = {k: v for k, v in sorted(rows[row].items()) if isinstance(v, int | float)}
            lines.append(f"- {row}: {', '.join(f'{k} {v:.4f}' for k, v in numbers.items())}")
        protocol = {k: v for k, v in probe["settings"].items() if k not in ("kind", "encoders")}
        lines.append(f"- protocol: {json.dumps(protocol, sort_keys=True)}, seed {probe['seed']}")
    return "\n".join(lines or ["No probe has evaluated it yet."]) + "\n"


def model_index(title: str, home: Path | None, probes: list[tuple[str, dict[str, Any]]]) -> str:
    """The card's block of results as the Hugging Face Hub reads them, in YAML: the accuracies of `evaluations`, which
    are those of a report's results.json. Empty where there are none."""
    found = []
    for name, probe in probes:
        assert home is not None
        protocol, row = probe["metrics"]["protocol"], probe["metrics"]["rows"][name]
        metrics = [
            {"type": "accuracy", "name": names.accuracy(key, protocol), "value": value}
            for key, value in row.items() if isinstance(value, float) and not key.endswith("_sd")
        ]  # fmt: skip
        source = source_of(home.parent, protocol.get("data"))
        task = {"type": "image-classification", "name": "frozen features, evaluated by a probe"}
        args = {"seed": probe["seed"], "n_test": protocol["n_test"], "per_class": protocol["per_class"]}
        dataset = {"type": source, "name": source, "split": "test", "args": args}
        found.append({"task": task, "dataset": dataset, "metrics": metrics})
    block = {"model-index": [{"name": title, "results": found}]}
    return yaml.safe_dump(block, sort_keys=False, allow_unicode=True) if found else ""


def source_of(root: Path, fingerprint: str | None) -> str:
    """What the shards of that fingerprint were packed from, without the folders above it."""
    for path in sorted(root.glob("*/artifact.json")):
        pack = json.loads(path.read_text())
        if fingerprint and pack.get("metrics", {}).get("fingerprint") == fingerprint:
            return Path(pack["settings"]["source"].partition(":")[2] or pack["settings"]["source"]).name
    return "packed images"
