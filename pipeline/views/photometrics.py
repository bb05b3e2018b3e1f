"""Colour jitter, greyscale, blur and solarisation of a batch, with separate parameters for each image.

The operations are those of torchvision's v2 on float images in [0, 1] (Pillow's, on uint8, are in `enhance`). The
random numbers are a function of (seed, epoch, id, view, operation), and so is the order of the four jitter operations.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import keyed
from pipeline.image import Image
from pipeline.jit import AVAILABLE
from pipeline.settings.data import Crops
from pipeline.views import enhance, photometrics_jit

FAINT = 1e-5
"""Share of a blur kernel's weight that may be left out, which changes a pixel by 1/400 of a grey level at most."""
GREY = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R 601-2, rounded as in torchvision)."""


@dataclass(frozen=True)
class Draws:
    """Parameters of N images. ``factors``, float32 [N, 4]: of brightness, contrast and saturation (1: unchanged), and
    the hue's rotation in turns; ``order``, int64 [N, 4]: which of these four comes first, second, ... (-1: none);
    ``grey`` and ``solarise``, bool [N]; ``sigma``, float64 [N]: of the blur in pixels (0: none). ``distortion``, if
    not None, comes between jitter and grey. ``grey_first``: grey comes before the jitter."""

    factors: np.ndarray
    order: np.ndarray
    grey: np.ndarray
    sigma: np.ndarray
    solarise: np.ndarray
    distortion: enhance.Distortion | None = None
    grey_first: bool = False


def draw(settings: Crops, *parts: Any) -> Draws:
    """Draws the parameters of every element of the key (see `keyed.key`), flattened to one axis."""
    base = keyed.key(*parts)

    def numbers(count: int, op: str) -> np.ndarray:
        return keyed.uniform_of(keyed.extend(base, op), count).reshape(-1, count)

    strength = np.array(settings.jitter)
    jitter = numbers(9, "jitter")
    low = np.append(np.maximum(0, 1 - strength[:3]), -strength[3])
    high = np.append(1 + strength[:3], strength[3])
    order = jitter[:, 5:].argsort(1)
    order[(jitter[:, :1] >= settings.jitter_p) | (strength == 0)[order]] = -1
    blur = numbers(2, "blur")
    sigma = settings.blur[0] + (settings.blur[1] - settings.blur[0]) * blur[:, 1]
    return Draws(
        (low + (high - low) * jitter[:, 1:5]).astype(np.float32),
        order,
        numbers(1, "grey")[:, 0] < settings.grey_p,
        np.where(blur[:, 0] < settings.blur_p, sigma, 0),
        numbers(1, "solarise")[:, 0] < settings.solarise_p,
        enhance.draw(numbers(4, "photometric"), settings.photometric_p) if settings.photometric_p else None,
        settings.grey_first,
    )


def radius(settings: Crops, side: int) -> int:
    """The radius of the blur kernel in pixels: half of ``blur_kernel`` times the image's side, at least 1."""
    return min(max(1, int(settings.blur_kernel * side / 2)), side - 1)


def blur_kernels(sigma: np.ndarray, reach: int) -> np.ndarray:
    """Gaussian weights at offsets 0 to ``reach``, of which both sides together sum to 1 -> float32 [N, reach + 1].

    Where sigma is 0 they are 1, 0, 0, ... Outer weights that sum to less than FAINT are set to 0, to save time.
    """
    away = np.arange(reach + 1) / np.where(sigma > 0, sigma, 1e-3)[:, None]
    weights = np.exp(-0.5 * away**2) * np.where(np.arange(reach + 1) > 0, 2, 1)
    weights /= weights.sum(1, keepdims=True)
    outside = weights[:, ::-1].cumsum(1)[:, ::-1]
    weights[outside < FAINT] = 0
    weights[:, 1:] /= 2
    return weights.astype(np.float32)


def finish(images: Tensor, draws: Draws, reach: int, image: Image, out: Tensor | None = None) -> Tensor:
    """Applies all operations and normalises: uint8 [N, C, H, W], C of 1 or 3 -> float32, same shape. ``reach``: the
    blur's radius in pixels. ``out``: where the result is written, if given. On a CPU with numba it works row by row
    (`photometrics_jit`), otherwise on the whole batch."""
    images, draws = apply_bytes(images, draws)
    weights = blur_kernels(draws.sigma, reach)
    if images.device.type == "cpu" and AVAILABLE:
        if out is None:
            out = torch.empty(images.shape)
        mean, scale = np.asarray(image.mean, np.float32), 1 / np.asarray(image.std, np.float32)
        pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
        photometrics_jit.finish(
            pixels, draws.factors, draws.order, draws.grey, weights, draws.solarise, mean, scale, out.numpy()
        )
        return out
    x = image.normalise(apply(images, draws, weights))
    return x if out is None else out.copy_(x)


def apply_bytes(images: Tensor, draws: Draws) -> tuple[Tensor, Draws]:
    """Applies the operations that work on uint8 images (`enhance`) and those before them. Returns the images, and the
    parameters of the operations that remain; without such operations both are unchanged."""
    none = np.zeros(len(images), bool)
    if draws.grey_first:
        images = change_rows(images.clone(), draws.grey, lambda part, _: enhance.grey(part).expand_as(part))
        draws = replace(draws, grey=none, grey_first=False)
    if draws.distortion is not None:
        jitter = replace(draws, grey=none, sigma=np.zeros(len(images)), solarise=none, distortion=None)
        channels, side = images.shape[1:3]
        plain = Image(channels, side, (0.0,) * channels, (1.0,) * channels)
        images = (finish(images, jitter, 0, plain) * 255).round_().to(torch.uint8)
        images = enhance.distort(images, draws.distortion)
        draws = replace(draws, order=np.full_like(draws.order, -1), distortion=None)
    return images, draws


def apply(images: Tensor, draws: Draws, weights: np.ndarray) -> Tensor:
    """Applies all operations but the normalisation to a batch: uint8 [N, C, H, W] -> float32 in [0, 1]. Saturation,
    hue and grey do not change images of one channel. ``weights``: of the blur, from `blur_kernels`."""
    x = images.float() / 255
    factors = torch.from_numpy(draws.factors).to(x.device)
    for turn in range(4):
        for op, change in enumerate(OPERATIONS):
            changed = draws.order[:, turn] == op
            by = factors[:, op].view(-1, 1, 1, 1)
            x = change_rows(x, changed, lambda part, rows, change=change, by=by: change(part, by[rows]))
    x = change_rows(x, draws.grey, lambda part, _: grey(part).expand_as(part))
    kernels = torch.from_numpy(weights).to(x.device)
    x = change_rows(x, draws.sigma > 0, lambda part, rows: blur(part, kernels[rows]))
    return change_rows(x, draws.solarise, lambda part, _: solarise(part))


def change_rows(x: Tensor, changed: np.ndarray, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """x with the rows where ``changed`` is true replaced by change(rows, their indices)."""
    if not changed.any():
        return x
    rows = torch.from_numpy(np.flatnonzero(changed)).to(x.device, non_blocking=True)
    return x.index_copy_(0, rows, change(x[rows], rows))


def grey(x: Tensor) -> Tensor:
    """Luma by the weights GREY: [N, C, H, W] -> [N, 1, H, W]."""
    if x.shape[1] == 1:
        return x
    return GREY[0] * x[:, :1] + GREY[1] * x[:, 1:2] + GREY[2] * x[:, 2:]


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Scales the difference to the mean of the image's luma by ``factor``."""
    level = grey(x).mean((1, 2, 3), keepdim=True)
    return (level + factor * (x - level)).clamp_(0, 1)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    if x.shape[1] == 1:
        return x
    level = grey(x)
    return (level + factor * (x - level)).clamp_(0, 1)


def hue(x: Tensor, turn: Tensor) -> Tensor:
    """Rotates the hue and keeps the value v (largest channel) and the chroma c (range of the channels), as in HSV.

    With h in sixths of a turn, channel n of (5, 3, 1) is v - c clamp(min(k, 4 - k), 0, 1), k = (n + h) mod 6.
    """
    if x.shape[1] == 1:
        return x
    r, g, b = x.unbind(1)
    v, c = x.amax(1), x.amax(1) - x.amin(1)
    d = torch.where(c == 0, 1, c)
    h = torch.where(v == r, (g - b) / d, torch.where(v == g, 2 + (b - r) / d, 4 + (r - g) / d))
    k = (h + 6 * turn[:, 0])[:, None] + x.new_tensor([5, 3, 1]).view(1, 3, 1, 1)
    k = k.remainder_(6)
    return v[:, None] - c[:, None] * torch.minimum(k, 4 - k).clamp_(0, 1)


OPERATIONS = (brightness, contrast, saturation, hue)


def blur(x: Tensor, weights: Tensor) -> Tensor:
    """Gaussian blur of each image with its own weights, [N, reach + 1], and reflected borders.

    Each image is multiplied by a banded matrix from both sides; the kernel's reflections at the borders are added in
    the matrix.
    """
    reach = weights.shape[1] - 1
    weights = torch.nn.functional.pad(weights, (0, 1))  # the last weight, 0, is for all larger offsets

    def matrix(side: int) -> Tensor:
        to, at, last = torch.arange(side, device=x.device)[:, None], torch.arange(side, device=x.device), side - 1

        def of(offset: Tensor, there: Tensor) -> Tensor:
            return weights[:, torch.where((offset.abs() <= reach) & there, offset.abs(), reach + 1)]

        return of(to - at, at >= 0) + of(to + at, at > 0) + of(2 * last - to - at, at < last)

    return matrix(x.shape[2])[:, None] @ x @ matrix(x.shape[3])[:, None].mT


def solarise(x: Tensor) -> Tensor:
    """Inverts values of 0.5 and more."""
    return torch.where(x >= 0.5, 1 - x, x)
