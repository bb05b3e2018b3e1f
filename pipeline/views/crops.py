"""Random resized crops with a flip: torchvision's distribution of boxes and its antialiased resampling, from keyed
random numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline import keyed
from pipeline.jit import AVAILABLE, optional_jit

TRIES = 10
"""Boxes that are tried before the central crop is taken."""
SMALL = 64
"""Side in pixels below which `resample` is faster than torch, whose calls then cost more than the work in them."""


@dataclass(frozen=True)
class Params:
    """The random numbers of one crop of each of B images of any size. ``widths`` and ``heights`` of the boxes to try,
    as shares of the square root of the image's area, float64 [B, TRIES]; ``corners`` (y, x) as shares of the range
    where the box fits, [B, 2]; ``flips``: whether it is mirrored, bool [B]."""

    widths: np.ndarray
    heights: np.ndarray
    corners: np.ndarray
    flips: np.ndarray
    ratio: tuple[float, float]

    def box(self, i: int, height: int, width: int) -> tuple[int, int, int, int]:
        """The top, left, height and width of the i-th crop in an image of height x width pixels."""
        return box(self.widths[i], self.heights[i], self.corners[i], height, width, *self.ratio)

    def crop(self, image: Tensor, i: int, out: Tensor) -> None:
        """Writes the i-th crop of an image, uint8 [C, H, W], resampled and perhaps mirrored, into ``out``, uint8
        [S, S, C].

        Both resamplers give torchvision's pixels to the bit: bilinear with antialias, with integer weights, first
        along rows.
        """
        _, height, width = image.shape
        y, x, h, w = self.box(i, height, width)
        side, flip = out.shape[0], bool(self.flips[i])
        if fast((h, w), side):
            resample(image.permute(1, 2, 0).numpy()[y : y + h, x : x + w], flip, out.numpy())
            return
        part = image[None, :, y : y + h, x : x + w]
        crop = torch.ops.aten._upsample_bilinear2d_aa(part, [side, side], False)[0]
        out.permute(2, 0, 1).copy_(crop.flip(-1) if flip else crop)

    def crop_rows(self, images: Tensor, rows: np.ndarray, out: Tensor) -> None:
        """Writes the crops of the images at ``rows`` [B] of uint8 [n, H, W, C] into ``out``, uint8 [B, S, S, C], where
        their sizes are `fast`. This is one call without the GIL, which the training's thread needs meanwhile."""
        _crop_rows(
            images.numpy(), rows, self.widths, self.heights, self.corners, self.flips, *self.ratio, out.numpy()
        )


def draw(
    seed: int,
    epoch: int,
    ids: np.ndarray,
    view: str,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    flip: float,
) -> Params:
    """Draws as torchvision's RandomResizedCrop does: up to ten boxes with an area uniform in ``scale`` times the
    image's and a ratio of width to height log-uniform in ``ratio``, then a position; and a flip with probability
    ``flip``."""
    u = keyed.uniform(2 * TRIES + 3, seed, epoch, ids, view, "crop")
    area = scale[0] + (scale[1] - scale[0]) * u[:, :TRIES]
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = np.exp(low + (high - low) * u[:, TRIES : 2 * TRIES])
    return Params(np.sqrt(area * aspect), np.sqrt(area / aspect), u[:, -3:-1], u[:, -1] < flip, ratio)


@optional_jit
def box(widths, heights, corner, height, width, narrowest, broadest):
    """The first box that fits in the image, else the largest central box whose ratio is in the range -> (top, left,
    height, width)."""
    root = math.sqrt(height * width)
    for k in range(len(widths)):
        w, h = int(np.rint(root * widths[k])), int(np.rint(root * heights[k]))
        if 0 < w <= width and 0 < h <= height:
            return int(corner[0] * (height - h + 1)), int(corner[1] * (width - w + 1)), h, w
    h, w = height, width
    if width < narrowest * height:
        h = int(np.rint(width / narrowest))
    elif width > broadest * height:
        w = int(np.rint(height * broadest))
    return (height - h) // 2, (width - w) // 2, h, w


def fast(size: Sequence[int], side: int) -> bool:
    """Whether `resample` makes crops of at most ``size`` pixels for views of ``side`` pixels; otherwise torch does."""
    return AVAILABLE and side < SMALL and max(size) < 8 * SMALL


@optional_jit
def kernel(size, side):
    """The antialiased bilinear weights of a resampling from ``size`` to ``side`` pixels along one axis: for each
    target pixel the first source pixel and their count, int64 [side] each; the weights times 2^bits, int32 [side,
    largest count]; and bits."""
    scale = size / side
    support, inverse = max(scale, 1.0), 1 / scale if scale >= 1 else 1.0
    most = 2 * math.ceil(support) + 1
    first, count = np.empty(side, np.int64), np.empty(side, np.int64)
    exact = np.zeros((side, most))
    largest = 0.0
    for i in range(side):
        centre = scale * (i + 0.5)
        first[i] = max(int(centre - support + 0.5), 0)
        count[i] = min(int(centre + support + 0.5), size) - first[i]
        total = 0.0
        for j in range(count[i]):
            exact[i, j] = max(0.0, 1.0 - abs((j + first[i] - centre + 0.5) * inverse))
            total += exact[i, j]
        for j in range(count[i]):
            exact[i, j] /= total
            largest = max(largest, exact[i, j])
    bits = 0
    while bits < 22 and int(0.5 + largest * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    weights = np.empty((side, most), np.int32)
    for i in range(side):
        for j in range(most):
            weights[i, j] = int(0.5 + exact[i, j] * (1 << bits))
    return first, count, weights, bits


@optional_jit
def resample(part, flip, out):
    """Resamples part, uint8 [h, w, C], into out, uint8 [S, S, C], bilinear with antialias, and mirrors it if asked."""
    height, width, channels = part.shape
    side = out.shape[0]
    first, count, weights, bits = kernel(width, side)
    rows = np.empty((height, side * channels), np.uint8)
    half = 1 << (bits - 1)
    for y in range(height):
        for i in range(side):
            to = channels * (side - 1 - i if flip else i)
            for c in range(channels):
                total = half
                for j in range(count[i]):
                    total += weights[i, j] * part[y, first[i] + j, c]
                rows[y, to + c] = min(max(total >> bits, 0), 255)
    first, count, weights, bits = kernel(height, side)
    sums = np.empty(side * channels, np.int32)
    flat = out.reshape(side, side * channels)
    for i in range(side):
        sums[:] = 1 << (bits - 1)
        for j in range(count[i]):
            row, weight = rows[first[i] + j], weights[i, j]
            for x in range(side * channels):
                sums[x] += weight * np.int32(row[x])
        for x in range(side * channels):
            flat[i, x] = min(max(sums[x] >> bits, 0), 255)


@optional_jit
def _crop_rows(images, rows, widths, heights, corners, flips, narrowest, broadest, out):
    height, width = images.shape[1:3]
    crop = np.empty(out.shape[1:], np.uint8)  # contiguous, which a slice of ``out`` need not be
    for i in range(len(rows)):
        y, x, h, w = box(widths[i], heights[i], corners[i], height, width, narrowest, broadest)
        resample(images[rows[i]][y : y + h, x : x + w], flips[i], crop)
        out[i] = crop
