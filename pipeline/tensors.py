"""Writes tensors to safetensors files, which need no pickle, and copies arrays to a device."""

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
    """Writes a safetensors file of tensors on any device, which may share memory (tied weights). The file's mode is
    that of the process's umask; the library would let only its owner read it."""
    save_file({k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}, path, metadata=metadata)
    path.chmod(0o666 & ~_HIDDEN)


def send(numbers: np.ndarray, device: torch.device) -> Tensor:
    """Copies an array to a device; for CUDA asynchronously, from pinned memory."""
    tensor = torch.from_numpy(numbers)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def lowered(x: Tensor) -> bool:
    """Whether autocast lowers the precision of what is computed on x's device."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)
