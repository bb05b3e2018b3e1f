"""Random resized crops with a flip: boxes by torchvision's law from keyed numbers, pixels resampled with antialias."""

import math

import numpy as np
import torch
from torch import Tensor

from pipeline import keyed

TRIES = 10
"""Boxes drawn before the central fallback."""
NUMBERS = 2 * TRIES + 3
"""Uniform numbers a crop takes: area and ratio of each try, then place (y, x) and flip."""


def draws(seed: int, epoch: int, ids: np.ndarray, view: str) -> np.ndarray:
    """The uniform numbers of each sample's crop -> float64 [B, NUMBERS]."""
    return keyed.uniform(NUMBERS, seed, epoch, ids, view, "crop")


def boxes(
    u: np.ndarray,
    height: np.ndarray | int,
    width: np.ndarray | int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> np.ndarray:
    """Top, left, height and width of crops of images [B] of ``height`` x ``width``, from `draws` -> int64 [B, 4].

    As torchvision's RandomResizedCrop: up to ten times an area U(scale) of the image with a ratio of width to height
    log-uniform in ``ratio``; where none of them fits inside, the largest central box with a ratio in the range.
    """
    height, width = (np.broadcast_to(np.asarray(v, np.int64), len(u)) for v in (height, width))
    tall, wide = height[:, None], width[:, None]
    area = tall * wide * (scale[0] + (scale[1] - scale[0]) * u[:, :TRIES])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = np.exp(low + (high - low) * u[:, TRIES : 2 * TRIES])
    w, h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (w > 0) & (w <= wide) & (h > 0) & (h <= tall)
    rows, first = np.arange(len(u)), fits.argmax(1)
    w, h = w[rows, first].astype(np.int64), h[rows, first].astype(np.int64)
    y, x = u[:, 2 * TRIES] * (height - h + 1), u[:, 2 * TRIES + 1] * (width - w + 1)
    found = np.stack([y.astype(np.int64), x.astype(np.int64), h, w], 1)
    none = ~fits.any(1)
    if none.any():
        found[none] = central(height[none], width[none], ratio)
    return found


def central(height: np.ndarray, width: np.ndarray, ratio: tuple[float, float]) -> np.ndarray:
    """The largest box at the centre whose ratio lies in the range -> int64 [B, 4]."""
    narrow, broad = width / height < ratio[0], width / height > ratio[1]
    h = np.where(narrow, np.rint(width / ratio[0]), height).astype(np.int64)
    w = np.where(broad, np.rint(height * ratio[1]), width).astype(np.int64)
    return np.stack([(height - h) // 2, (width - w) // 2, h, w], 1)


def flips(u: np.ndarray, probability: float) -> np.ndarray:
    """Which crops are mirrored -> bool [B]."""
    return u[:, -1] < probability


def cut(image: Tensor, box: np.ndarray, flip: bool, side: int) -> Tensor:
    """The box of an image, uint8 [C, H, W], resampled with antialias, and mirrored or not -> [C, side, side].

    torch's kernel for bytes (the one below torchvision's resized_crop, called without its checks): linear weights of
    16 bits over the source pixels that a target pixel covers.
    """
    y, x, h, w = box.tolist()
    part = image[None, :, y : y + h, x : x + w]
    cropped = torch.ops.aten._upsample_bilinear2d_aa(part, [side, side], False)[0]
    return cropped.flip(-1) if flip else cropped
