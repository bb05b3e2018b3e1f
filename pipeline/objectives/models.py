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
from pipeline.objectives.base import Objective, Setup
from pipeline.objectives.kinds import OBJECTIVES
from pipeline.settings.nets import Net
from pipeline.world import World

WEIGHTS, SPEC = "model.safetensors", "model.json"


def spec(objective: Objective, setup: Setup) -> dict[str, Any]:
    """What rebuilds the objective, as JSON."""
    settings = {"objective": objective.settings, "net": setup.net}
    return {name: part.model_dump(mode="json") for name, part in settings.items()} | {"image": asdict(setup.image)}


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
        return json.loads((folder / SPEC).read_text()), load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise unreadable(folder, error) from error


def unreadable(folder: Path, error: Exception) -> DataError:
    if not folder.exists():
        return DataError(f"{folder}: no such folder{sibling(folder)}")
    return DataError(f"{folder}: no model that can be read ({type(error).__name__}: {error})")


def build(spec: dict[str, Any], seed: int = 0) -> Objective:
    """The objective of a spec with its first weights, in this process alone."""
    settings: Any = OBJECTIVES[spec["objective"]["kind"]].Settings.model_validate(spec["objective"])
    net = TypeAdapter(Net).validate_python(spec["net"])
    setup = Setup(image(spec), samples=1, net=net, world=World.single(device="cpu"), seed=seed)
    return OBJECTIVES[settings.kind](settings, setup)  # type: ignore[call-arg]


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
