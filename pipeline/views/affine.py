"""Views of characters: rotation, shear, scale, shift and a smooth random bending, in one resampling of the batch."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from pipeline import keyed
from pipeline.settings.data import Characters


def between(u: np.ndarray, low: float, high: float) -> Tensor:
    return torch.from_numpy(low + (high - low) * u).float()


def matrices(settings: Characters, seed: int, epoch: int, ids: np.ndarray, view: str) -> Tensor:
    """Maps from places in the view to places in the image, both in [-1, 1] -> [B, 2, 3]."""
    u = keyed.uniform(6, seed, epoch, ids, view, "affine").T
    turn = between(u[0], -1, 1) * math.radians(settings.rotation)
    shear = torch.tan(between(u[1:3], -1, 1) * math.radians(settings.shear))
    shrink = 1 / between(u[3], *settings.scale)
    shift = between(u[4:6], -2, 2) * settings.shift
    cos, sin, one = turn.cos(), turn.sin(), torch.ones_like(turn)
    rotate = torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)
    slant = torch.stack([one, shear[0], shear[1], one], 1).view(-1, 2, 2)
    return torch.cat([rotate @ slant * shrink.view(-1, 1, 1), shift.T[..., None]], 2)


def bending(settings: Characters, seed: int, epoch: int, ids: np.ndarray, view: str, side: int) -> Tensor:
    """Displacements in [-1, 1] units -> [B, side, side, 2]: Gaussian noise on a coarse grid, made smooth between.

    The grid's spacing is the field's standard deviation; its root mean square is ``settings.elastic`` pixels.
    """
    coarse = max(2, round(side / settings.elastic_sigma)) + 1
    noise = keyed.normal(2 * coarse * coarse, seed, epoch, ids, view, "elastic")
    field = torch.from_numpy(noise).float().view(-1, 2, coarse, coarse)
    field = interpolate(field, size=(side, side), mode="bicubic", align_corners=True)
    # The interpolation's own gain, the same for every sample: the root of the mean sum of its squared weights.
    basis = interpolate(torch.eye(coarse)[None, :, None], size=(1, side), mode="bicubic", align_corners=True)
    gain = basis[0, :, 0].square().sum(0).mean()
    return field.permute(0, 2, 3, 1) * (settings.elastic / gain * 2 / side)


def view(
    images: Tensor, settings: Characters, seed: int, epoch: int, ids: np.ndarray, name: str, side: int
) -> Tensor:
    """One random view of each image: uint8 [B, C, H, W] -> float32 [B, C, side, side] in [0, 1]."""
    device = images.device
    grid = affine_grid(
        matrices(settings, seed, epoch, ids, name).to(device), [len(images), 1, side, side], align_corners=False
    )
    if settings.elastic:
        grid = grid + bending(settings, seed, epoch, ids, name, side).to(device)
    bent = grid_sample(images.float() / 255, grid, align_corners=False)
    return contrast(bent, settings, seed, epoch, ids, name)


def contrast(images: Tensor, settings: Characters, seed: int, epoch: int, ids: np.ndarray, name: str) -> Tensor:
    """Each image [B, ...] (or each of its P patches [B, P, ...]) times a factor of its own, kept in [0, 1]."""
    lead = images.shape[1] if images.ndim == 5 else 1
    factor = between(keyed.uniform(lead, seed, epoch, ids, name, "contrast"), *settings.contrast).to(images.device)
    shape = (len(images), lead, 1, 1, 1) if images.ndim == 5 else (len(images), 1, 1, 1)
    return (images * factor.view(shape)).clamp(0, 1)
