"""First weights from elsewhere: files of torchvision, of timm, of others by their names, and models of ours.

    locate(init)                 the file that a net's `init` names, and the statistics of the pixels that it was for
    digest(init)                 what stands for that file in a key
    load(trunk, init, image)     fills a trunk from it -> a line about every tensor that was not used or not found

Nothing is unpickled but what torchvision distributes, by torch's `weights_only`.
"""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.request import Request, urlopen

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from pipeline.errors import ConfigError, DataError, first_line
from pipeline.hints import nearest, sibling
from pipeline.image import Image

WEIGHTS, SPEC = "model.safetensors", "model.json"
"""The files of a model of ours."""
MISSING = 0.1
"""Share of a trunk's tensors that a file may lack before it counts as another network's."""
State = dict[str, Tensor]


@dataclass(frozen=True)
class Source:
    """A file of weights, and what of each channel was taken off the pixels that they were trained on, in [0, 1], and
    what they were divided by; none where nothing tells. ``of_ours``: whether they are a model of ours."""

    path: Path
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    of_ours: bool = False


# -------------------------------------------------------------------------------------------------------------- places
def locate(init: str) -> Source:
    """The file that an ``init`` names, from the network where it is not here yet. Raises ConfigError where there is
    none of that name, and DataError where it cannot be had from here."""
    scheme, _, where = init.partition(":")
    source = {"file": of_file, "artifact": of_artifact, "torchvision": of_torchvision, "timm": of_timm}[scheme](where)
    if not source.path.is_file():
        raise ConfigError(f"net.init: {init}: no such file{sibling(source.path)}")
    return source


def of_file(where: str) -> Source:
    """timm's config.json beside the file says which pixels it is for."""
    path = Path(where)
    try:
        config = json.loads((path.parent / "config.json").read_text())["pretrained_cfg"]
        return Source(path, tuple(config["mean"]), tuple(config["std"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Source(path)


def of_artifact(where: str) -> Source:
    folder = Path(where)
    try:
        image = json.loads((folder / SPEC).read_text())["image"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"net.init: artifact:{where}: no stage of this name, and no folder with a model{sibling(folder)}"
        ) from None
    return Source(folder / WEIGHTS, tuple(image["mean"]), tuple(image["std"]), of_ours=True)


def of_torchvision(where: str) -> Source:
    """The default weights of a classifier, or NAME.WEIGHTS, where torch.hub keeps them."""
    from torchvision import models

    name, _, tag = where.partition(".")
    known = models.list_models(module=models)
    if name not in known:
        raise ConfigError(f'net.init: torchvision has no weights of "{name}"{near(name, known)}')
    every = models.get_model_weights(name).__members__
    if tag and tag not in every:
        raise ConfigError(f'net.init: torchvision has no "{tag}" of {name}{nearest(tag, every)}')
    weights: Any = every[tag or "DEFAULT"]
    path = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    if not path.exists():
        download(weights.url, path)
    preset = weights.transforms()
    return Source(path, tuple(preset.mean), tuple(preset.std))


def download(url: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        digits = path.stem.rpartition("-")[2]  # the first of the file's SHA-256
        torch.hub.download_url_to_file(url, str(path), digits, progress=False)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{url} is not reached ({first_line(error)}): bring the file and put it at {path}") from None


def of_timm(where: str) -> Source:
    """The weights of a model of timm by its name, with or without its tag, where huggingface_hub keeps them."""
    config = timm_config(where, "net.init")
    if config is None or not config.hf_hub_id:
        raise ConfigError(f"net.init: timm has no weights of {where} on the Hugging Face Hub; expected NAME.TAG")
    return Source(cached(config.hf_hub_id), tuple(config.mean), tuple(config.std))


def cached(repository: str) -> Path:
    """The safetensors of a repository of the Hugging Face Hub in the cache of this machine, fetched if need be."""
    from huggingface_hub import constants, hf_hub_download, hf_hub_url, try_to_load_from_cache

    found = try_to_load_from_cache(repository, WEIGHTS)
    if isinstance(found, str):
        return Path(found)
    try:
        with urlopen(Request(hf_hub_url(repository, WEIGHTS), method="HEAD"), timeout=10):
            pass  # asked once: the hub's own client says six times that it tries again
        return Path(hf_hub_download(repository, WEIGHTS))
    except Exception as error:  # of urllib, httpx, the hub: each has its own for what has no network
        raise DataError(
            f"huggingface.co/{repository} is not reached ({first_line(error)}): bring its {WEIGHTS} and config.json, "
            f"and name them by net.init: file:FOLDER/{WEIGHTS}; or bring {constants.HF_HUB_CACHE} of a machine that "
            f"has it"
        ) from None


def timm_config(name: str, key: str) -> Any:
    """What timm knows of a model's weights; None where there are none. Raises ConfigError where it has no such
    model."""
    try:
        import timm
    except ImportError:
        raise ConfigError(f"{key}: {name} needs timm, which is not installed: pip install 'pipeline[timm]'") from None
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        raise ConfigError(f'{key}: timm has no model "{base}"{near(base, timm.list_models())}')
    tags = [each.partition(".")[2] for each in timm.list_models(f"{base}.*", pretrained=True)]
    if tag and tag not in tags:
        raise ConfigError(f'{key}: timm has no weights "{tag}" of {base}{nearest(tag, tags)}')
    return timm.get_pretrained_cfg(name)


def near(name: str, known: Iterable[str]) -> str:
    """The nearest name, but not all of hundreds."""
    hint = nearest(name, known)
    return hint if hint.startswith("; did you mean") else ""


def digest(init: str) -> str:
    """SHA-256 of the file that an ``init`` names, and of the statistics of its pixels."""
    source = locate(init)
    with source.path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256")
    found.update(json.dumps([source.mean, source.std]).encode())
    return found.hexdigest()


# ------------------------------------------------------------------------------------------------------------- reading
def read(path: Path) -> State:
    """The tensors of a file by name, on the CPU. Raises DataError where it cannot be read."""
    try:
        with torch.device("cpu"):  # whatever device a net is described on
            if path.suffix == ".safetensors":
                return load_file(path)
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, ValueError, SafetensorError, UnpicklingError, RuntimeError, EOFError) as error:
        raise DataError(f"net.init: {path} cannot be read ({first_line(error)}): bring it again") from None


@torch.no_grad()
def load(trunk: nn.Module, init: str, image: Image) -> str:
    """Fills a trunk for such images with the weights that an ``init`` names -> a line about what was not used and what
    was not found. Raises ConfigError where more than MISSING of the trunk's tensors are not there."""
    own = {name: x for name, x in trunk.state_dict().items() if not name.endswith("num_batches_tracked")}
    given = read(locate(init).path)
    names = our_names(given, own)
    remarks, lacking = [], []
    for name, x in own.items():
        theirs = names.get(name)
        value = None if theirs is None else fitted(name, given[theirs], x, init, image, remarks)
        if value is None:
            lacking.append(f"{name} {shape(x)}" + (f", there {shape(given[theirs])}" if theirs else ""))
        else:
            x.copy_(value)
    if len(lacking) > MISSING * len(own):
        raise ConfigError(
            f"net.init: {init}: {len(lacking)} of this network's {len(own)} tensors are not there, such as "
            f"{lacking[0]}; it is of another architecture, or of another size"
        )
    unused = [name for name in given if name not in names.values() and not name.endswith("num_batches_tracked")]
    parts = [f"net starts from {init}: {len(own) - len(lacking)} of {len(own)} tensors", *remarks]
    parts += [f"not found, so random: {'; '.join(lacking)}"] * bool(lacking)
    parts += [f"not used: {', '.join(unused)}"] * bool(unused)
    return "; ".join(parts)


def shape(x: Tensor) -> str:
    return " x ".join(map(str, x.shape))


TIMM_NAMES = {
    "class_token": "cls_token",
    "conv_proj": "patch_embed.proj",
    "encoder.pos_embedding": "pos_embed",
    "encoder.layers.encoder_layer_": "blocks.",
    "encoder.ln": "norm",
    "ln_1": "norm1",
    "ln_2": "norm2",
    "self_attention.in_proj_": "attn.qkv.",
    "self_attention.out_proj": "attn.proj",
    "mlp.0": "mlp.fc1",
    "mlp.3": "mlp.fc2",
}
"""torchvision's parts of a ViT's names, and timm's."""


def timm_name(name: str) -> str:
    """timm's name of a tensor of torchvision's ViT."""
    for theirs, ours in TIMM_NAMES.items():
        name = name.replace(theirs, ours)
    return name


def our_names(given: State, own: State) -> dict[str, str]:
    """The name in a file of each tensor of a trunk that is there: by the trunk's names or by timm's, after whichever
    prefix (``trunk.``, ``module.``) most of them stand with their shapes."""
    best: dict[str, str] = {}
    most = -1
    for rename in (str, timm_name):
        theirs = {name: rename(name) for name in own}
        for prefix in prefixes(given, list(theirs.values())):
            found = {name: prefix + other for name, other in theirs.items() if prefix + other in given}
            fits = sum(given[other].shape == own[name].shape for name, other in found.items())
            if fits > most:
                best, most = found, fits
    return best


def prefixes(given: Iterable[str], names: list[str]) -> list[str]:
    """What stands in a file before names of a trunk, as far as the first, the middle and the last of them tell; the
    shortest first."""
    ends = {names[0], names[len(names) // 2], names[-1]}
    return sorted({name.removesuffix(end) for name in given for end in ends if name.endswith(end)} | {""}, key=len)


def fitted(name: str, value: Tensor, own: Tensor, init: str, image: Image, remarks: list[str]) -> Tensor | None:
    """A file's tensor in the shape of the trunk's; None where it has another that cannot be changed. What was changed
    is added to the ``remarks``."""
    theirs, ours = value.shape, own.shape
    if theirs == ours:
        return value
    alike = len(theirs) == len(ours) == 4 and theirs[0] == ours[0] and theirs[2:] == ours[2:]
    if alike and ours[1] == image.channels:
        if image.channels == 1:
            remarks.append(f"{name} summed over its {theirs[1]} channels")
            return value.sum(1, keepdim=True)
        if theirs[1] == 1:
            remarks.append(f"{name} repeated over {image.channels} channels, divided by their number")
            return value.repeat(1, image.channels, 1, 1) / image.channels
        raise ConfigError(f"net.init: {init}: {name} takes {theirs[1]} channels, and the images have {image.channels}")
    if "pos_embed" in name and len(theirs) == len(ours) == 3 and theirs[2] == ours[2]:
        before, after = (math.isqrt(count - 1) for count in (theirs[1], ours[1]))
        if (before**2 + 1, after**2 + 1) == (theirs[1], ours[1]):
            remarks.append(f"{name} interpolated from {before} x {before} patches to {after} x {after}")
            return resampled(value, after)
    return None


def resampled(table: Tensor, side: int) -> Tensor:
    """A position embedding [1, 1 + n^2, D] for ``side`` x ``side`` patches, bicubic (arXiv 2010.11929, sec. 3.2); the
    row of the class token stays as it is."""
    edge = math.isqrt(table.shape[1] - 1)
    grid = table[:, 1:].float().unflatten(1, (edge, edge)).permute(0, 3, 1, 2)
    grid = interpolate(grid, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([table[:, :1].float(), grid.flatten(2).transpose(1, 2)], 1)


def normalised_as(source: Source, image: Image) -> Image:
    """The image with the statistics of the pixels that the weights were trained on, as far as they are known; where
    the channels are others, with their means over all channels."""
    if source.mean is None or source.std is None:
        return image
    mean, std = (
        tuple(row) if len(row) == image.channels else (sum(row) / len(row),) * image.channels
        for row in (source.mean, source.std)
    )
    return replace(image, mean=mean, std=std)
