"""Tensors to a file, without pickle, that others may read as any other file; and to a device."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

_HIDDEN = os.umask(0o022)
os.umask(_HIDDEN)


def write(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """A safetensors file, from whatever device; tensors may share memory, as tied weights do, which the library
    refuses. It also keeps its files to their owner: here the process's umask holds."""
    save_file({k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}, path, metadata=metadata)
    path.chmod(0o666 & ~_HIDDEN)


def send(numbers: np.ndarray, device: torch.device) -> Tensor:
    """A tensor of the numbers on a device, which a step does not wait for."""
    tensor = torch.from_numpy(numbers)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
