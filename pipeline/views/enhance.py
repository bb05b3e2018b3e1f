"""Pillow's operations on uint8 images, equal to the bit: those that PIRL's views have between jitter and grey."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Distortion:
    """Parameters of N images: ``bits`` that posterise keeps, int64 [N] (8: all); ``sharpness``, float32 [N] (1:
    unchanged); ``threshold`` from which solarise inverts values, int64 [N] (256: none); ``stretch``: whether
    autocontrast is applied, bool [N]."""

    bits: np.ndarray
    sharpness: np.ndarray
    threshold: np.ndarray
    stretch: np.ndarray


def draw(u: np.ndarray, p: float) -> Distortion:
    """Draws the parameters of vissl's ImgPilRandomPhotometric, used by PIRL (arXiv 1912.01991), from uniform numbers
    [N, 4]: all four operations with probability p, else none."""
    changed = u[:, 0] < p
    return Distortion(
        np.where(changed, 4 + (5 * u[:, 1]).astype(np.int64), 8),
        np.where(changed, 0.1 + 1.8 * u[:, 2], 1).astype(np.float32),
        np.where(changed, (257 * u[:, 3]).astype(np.int64), 256),
        changed,
    )


def distort(images: Tensor, draws: Distortion) -> Tensor:
    """Posterises, sharpens and solarises images and stretches their contrast: uint8 [N, C, H, W] -> same shape."""

    def each(numbers: np.ndarray) -> Any:
        return torch.from_numpy(numbers).to(images.device).view(-1, 1, 1, 1)

    x = images & (256 - 2 ** (8 - each(draws.bits))).to(torch.uint8)
    x = sharpen(x, each(draws.sharpness))
    x = torch.where(x >= each(draws.threshold), 255 - x, x)
    return torch.where(each(draws.stretch), autocontrast(x), x)


def sharpen(x: Tensor, factor: Tensor) -> Tensor:
    """Extrapolates from a smoothed image (3x3 kernel, centre weight 5) through the image by ``factor``, float32
    [N, 1, 1, 1]: 0 is smoothed, 1 unchanged. Border pixels are not smoothed. As Pillow's ImageEnhance.Sharpness."""
    wide, smooth = x.int(), x.int()
    height, width = x.shape[2] - 2, x.shape[3] - 2
    if height > 0 and width > 0:
        inner = wide[:, :, 1:-1, 1:-1]
        total = 4 * inner
        for dy in range(3):
            for dx in range(3):
                total = total + wide[:, :, dy : dy + height, dx : dx + width]
        smooth = smooth.clone()
        smooth[:, :, 1:-1, 1:-1] = (2 * total + 13) // 26
    blend = (smooth + factor * (wide - smooth)).clamp(0, 255).to(torch.uint8)
    return torch.where(factor == 1, x, blend)


def autocontrast(x: Tensor) -> Tensor:
    """Scales each channel linearly so that its smallest value becomes 0 and its largest 255, rounded down."""
    flat = x.flatten(2)
    low, high = flat.amin(2, keepdim=True).double(), flat.amax(2, keepdim=True).double()
    scale = torch.full_like(low, 255) / (high - low)  # 255 / x would multiply by a reciprocal and round twice
    levels = torch.arange(256, device=x.device, dtype=torch.float64)
    table = (levels * scale - low * scale).clamp(0, 255)
    table = torch.where(high > low, table, levels).to(torch.uint8)
    return table.gather(2, flat.long()).view_as(x)


def grey(x: Tensor) -> Tensor:
    """Luma as Pillow rounds it: uint8 [N, C, H, W] -> [N, 1, H, W]."""
    if x.shape[1] == 1:
        return x
    r, g, b = x.int().unbind(1)
    return ((19595 * r + 38470 * g + 7471 * b + 32768) >> 16)[:, None].to(torch.uint8)
