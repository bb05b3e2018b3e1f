"""Checkpoints: tensors in safetensors, the rest in JSON, whole or not at all, and the newest undamaged one found.

A checkpoint is a folder `checkpoints/<step>/` that was written under another name, synced and renamed; `state.json`
carries the digest of the tensors' file and of itself. No pickle.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.files import sync, write_json
from pipeline.lines import say
from pipeline.tensors import write
from pipeline.training import sharded

Checkpoint = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors and state."""
TENSORS, STATE = "tensors.safetensors", "state.json"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state_digest(state: dict[str, Any]) -> str:
    """Digest of a state, its own left out."""
    text = json.dumps({k: v for k, v in state.items() if k != "own"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def save(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any], keep: int) -> Path:
    """Writes `folder`/<step> and drops all but the newest ``keep``. The caller sees it whole or not at all."""
    final, part = folder / f"{step:08d}", folder / f".{step:08d}.part"
    for left in folder.glob(".*.part"):  # by a process that was killed while it wrote
        shutil.rmtree(left)
    part.mkdir(parents=True)
    write(tensors, part / TENSORS)
    body = {**state, "step": step, "sha256": _digest(part / TENSORS)}
    body["own"] = _state_digest(json.loads(json.dumps(body)))  # as it will be read
    write_json(part / STATE, body)
    for name in (TENSORS, "."):
        sync(part / name)
    shutil.rmtree(final, ignore_errors=True)
    part.rename(final)
    sync(folder)
    for old in sorted(steps(folder))[:-keep]:
        shutil.rmtree(folder / f"{old:08d}")
    return final


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, damaged ones among them, in order."""
    return sorted(int(p.name) for p in folder.glob("[0-9]" * 8)) if folder.is_dir() else []


def read(path: Path) -> Checkpoint:
    """Tensors and state of one checkpoint. Raises ValueError where it is not what was written."""
    try:
        state = json.loads((path / STATE).read_text())
        tensors_match, state_matches = _digest(path / TENSORS) == state["sha256"], _state_digest(state) == state["own"]
    except (OSError, LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if not (tensors_match and state_matches):
        raise ValueError(f"its {'state is' if tensors_match else 'tensors are'} not what was written")
    return load_file(path / TENSORS), state


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; a damaged one is named and passed over."""
    for step in reversed(steps(folder)):
        try:
            return read(folder / f"{step:08d}")
        except ValueError as error:
            say(f"checkpoint {folder / f'{step:08d}'} is damaged ({error}); going back to the one before")
    return None


def pack_optimiser(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as named tensors, and its scalars for JSON."""
    state = optimiser.state_dict()
    tensors, scalars = {}, {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimiser.{index}.{name}"] = value
            else:
                scalars[f"{index}.{name}"] = value
    return tensors, scalars


def unpack_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
    """The inverse of `pack_optimiser`, onto an optimiser over the same parameters in the same order."""
    state: dict[int, dict[str, Any]] = {}
    named = {k.removeprefix("optimiser."): v for k, v in tensors.items() if k.startswith("optimiser.")}
    for name, value in {**named, **scalars}.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    for parameter, values in optimiser.state.items():  # in the parameter's own memory layout, as they were
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = sharded.shard_like(parameter, value)
