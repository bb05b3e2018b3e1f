"""A trained objective as files: what using it needs in safetensors, what rebuilds it in JSON; none of where it ran."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline import files, tensors
from pipeline.errors import DataError
from pipeline.hints import sibling
from pipeline.image import Image
from pipeline.nets.pretrained import SPEC, WEIGHTS
from pipeline.objectives import kinds
from pipeline.objectives.base import Objective, Setup
from pipeline.settings import imports
from pipeline.settings.nets import Net, structure
from pipeline.world import World


def spec(objective: Objective, setup: Setup) -> dict[str, Any]:
    """What rebuilds the objective, as JSON, with hashes of the user's files that it is made with; not where its first
    weights came from."""
    settings: dict[str, Any] = {"objective": objective.settings, "net": structure(setup.net)}
    files = {file.name: file.sha256 for part in settings.values() for file in imports.used(part)}
    parts = {name: part.model_dump(mode="json") for name, part in settings.items()}
    return parts | {"image": asdict(setup.image)} | ({"imports": files} if files else {})


def state(objective: Objective) -> dict[str, Tensor]:
    """The part of the objective's state that its use needs, without what only its training needs."""
    return {name: x for name, x in objective.state_dict().items() if not name.startswith(objective.training_state)}


def write(folder: Path, weights: dict[str, Tensor], spec: dict[str, Any]) -> None:
    """Writes `model.safetensors`, then `model.json`: a folder that has the latter is complete."""
    with files.replacing(folder / WEIGHTS) as part:
        tensors.write(weights, part)
    files.write_json(folder / SPEC, spec)


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(spec, weights) of the model in a folder. Raises DataError where there is none, or a damaged one."""
    try:
        return read_spec(folder), load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise unreadable(folder, error) from error


def read_spec(folder: Path) -> dict[str, Any]:
    """The spec of the model in a folder. Raises OSError or ValueError where there is none, DataError where a user's
    file that the model is made with is not as it was."""
    spec = json.loads((folder / SPEC).read_text())
    if hashes := files_of(spec):
        imports.recall(hashes, *recorded(folder))
    return spec


def files_of(spec: dict[str, Any]) -> dict[str, str]:
    """Hashes of the user's files that a model is made with, by name; also of one whose features it codes."""
    return spec.get("imports", {}) | (files_of(spec["inner"]) if "inner" in spec else {})


def recorded(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The artifact that a model's folder is, or lies in, and what it has recorded of the user's files."""
    for path in (above / name for above in (folder, *folder.parents[:2]) for name in ("artifact.json", "begun.json")):
        if path.exists():
            return path.parent, json.loads(path.read_text()).get("imports", {})
    return folder, {}


def unreadable(folder: Path, error: Exception) -> DataError:
    if not folder.exists():
        return DataError(f"{folder}: no such folder{sibling(folder)}")
    return DataError(f"{folder}: no model that can be read ({type(error).__name__}: {error})")


def build(spec: dict[str, Any], seed: int = 0) -> Objective:
    """The objective of a spec with its first weights, in this process alone."""
    settings: Any = settings_model(spec).model_validate(spec["objective"])
    net = net_settings(spec)
    setup = Setup(image(spec), samples=1, net=net, world=World.single(device="cpu"), seed=seed)
    return kinds.build(settings, setup)


def net_settings(spec: dict[str, Any]) -> Any:
    """The settings of a spec's net."""
    return TypeAdapter(Net).validate_python(spec["net"], context=imports.recalled(spec.get("imports", {})))


def settings_model(spec: dict[str, Any]) -> Any:
    """The class of the settings of a spec's objective."""
    kind = spec["objective"]["kind"]
    ours = kind in kinds.OBJECTIVES
    return kinds.OBJECTIVES[kind].Settings if ours else imports.recalled(spec["imports"]).model("objective", kind)


def objective_class(spec: dict[str, Any]) -> type[Objective]:
    """The class of a spec's objective."""
    kind = spec["objective"]["kind"]
    return kinds.OBJECTIVES.get(kind) or settings_model(spec).made


def image(spec: dict[str, Any]) -> Image:
    """The images that the model of a spec takes."""
    return TypeAdapter(Image).validate_python(spec["image"])


def restore(spec: dict[str, Any], weights: dict[str, Tensor]) -> Objective:
    """The objective of a spec with these weights, in their precision, in evaluation mode. Raises ValueError and its
    like where they do not fit."""
    objective = build(spec).to(dtype(weights.values()))
    fresh = objective.state_dict()
    rest = {name: x for name, x in fresh.items() if name.startswith(objective.training_state)}
    objective.load_state_dict(weights | rest)
    return objective.float().eval().requires_grad_(False)


def dtype(weights: Iterable[Tensor]) -> torch.dtype:
    return next((x.dtype for x in weights if x.is_floating_point()), torch.float32)


def load(folder: Path | str) -> Objective:
    """The trained objective in a folder (an artifact of a `pretrain` stage, or one of its snapshots), in evaluation
    mode and fp32, on the CPU. What only its training needs (a queue, a bank, a momentum encoder) is as at its start.

    Raises DataError where there is none, or a damaged one.
    """
    folder = Path(folder).expanduser()
    description, weights = read(folder)
    try:
        return restore(description, weights)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise unreadable(folder, error) from error
