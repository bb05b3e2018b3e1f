"""Writes checkpoints atomically, tensors as safetensors and the rest as JSON, and finds the newest undamaged one.

A checkpoint is a folder `checkpoints/<step>/`, written under another name, synced and renamed. `state.json` contains
digests of the tensors' file and of itself. Nothing is pickled.
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
    """The digest of a state without its own entry."""
    text = json.dumps({k: v for k, v in state.items() if k != "own"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def save(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any], keep: int) -> Path:
    """Writes the checkpoint `folder`/<step> atomically, removes all but the newest ``keep``, and returns its path."""
    final, part = folder / f"{step:08d}", folder / f".{step:08d}.part"
    for left in folder.glob(".*.part"):  # left by a process that was killed while writing
        shutil.rmtree(left)
    part.mkdir(parents=True)
    write(tensors, part / TENSORS)
    body = {**state, "step": step, "sha256": _digest(part / TENSORS)}
    body["own"] = _state_digest(json.loads(json.dumps(body)))  # the digest of what a reader will parse
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
    """The steps of the checkpoints in a folder in rising order, damaged ones included."""
    return sorted(int(p.name) for p in folder.glob("[0-9]" * 8)) if folder.is_dir() else []


def read(path: Path) -> Checkpoint:
    """The tensors and state of a checkpoint. Raises ValueError where a file is missing or a digest is wrong."""
    try:
        state = json.loads((path / STATE).read_text())
        tensors_match, state_matches = _digest(path / TENSORS) == state["sha256"], _state_digest(state) == state["own"]
    except (OSError, LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if not (tensors_match and state_matches):
        raise ValueError(f"its {'state is' if tensors_match else 'tensors are'} not what was written")
    return load_file(path / TENSORS), state


def newest(folder: Path) -> Checkpoint | None:
    """The newest undamaged checkpoint, or None. A line is printed for each damaged one that is skipped."""
    for step in reversed(steps(folder)):
        try:
            return read(folder / f"{step:08d}")
        except ValueError as error:
            say(f"checkpoint {folder / f'{step:08d}'} is damaged ({error}); going back to the one before")
    return None


def pack_optimiser(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state, as named tensors and as scalars for JSON."""
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
    """Loads the state from `pack_optimiser` into an optimiser of the same parameters in the same order."""
    state: dict[int, dict[str, Any]] = {}
    named = {k.removeprefix("optimiser."): v for k, v in tensors.items() if k.startswith("optimiser.")}
    for name, value in {**named, **scalars}.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    for parameter, values in optimiser.state.items():  # in the parameter's memory layout, as before
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = sharded.shard_like(parameter, value)
