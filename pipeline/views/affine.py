"""Views of characters: rotation, shear, scale, shift and an elastic distortion in one resampling of the batch, then a
change of stroke width and of contrast."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, max_pool2d

from pipeline import keyed
from pipeline.settings.data import Characters


def spread(u: np.ndarray, low: float, high: float) -> Tensor:
    """Maps uniform numbers from [0, 1) to [low, high)."""
    return torch.from_numpy(low + (high - low) * u).float()


def affine_matrices(settings: Characters, seed: int, epoch: int, ids: np.ndarray, view: str) -> Tensor:
    """Random affine matrices [B, 2, 3], which map a position in the view to one in the image, both in [-1, 1]."""
    u = keyed.uniform(6, seed, epoch, ids, view, "affine").T
    turn = spread(u[0], -1, 1) * math.radians(settings.rotation)
    shear = torch.tan(spread(u[1:3], -1, 1) * math.radians(settings.shear))
    shrink = 1 / spread(u[3], *settings.scale)
    shift = spread(u[4:6], -2, 2) * settings.shift
    cos, sin, unit = turn.cos(), turn.sin(), torch.ones_like(turn)
    rotate = torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)
    slant = torch.stack([unit, shear[0], shear[1], unit], 1).view(-1, 2, 2)
    return torch.cat([rotate @ slant * shrink.view(-1, 1, 1), shift.T[..., None]], 2)


def displacements(settings: Characters, seed: int, epoch: int, ids: np.ndarray, view: str, side: int) -> Tensor:
    """Elastic displacements [B, side, side, 2] in units of half the side: white noise smoothed by a Gaussian (Simard,
    Steinkraus & Platt 2003).

    The noise has one value each standard deviation of the Gaussian, which is smooth enough not to show the grid. Each
    pixel's weights have norm 1, so that the displacement along an axis has a root mean square of ``settings.elastic``
    pixels everywhere.
    """
    sigma = settings.elastic_sigma
    nodes = torch.arange(-2 * sigma, side + 2 * sigma + 1, sigma)
    pixels = torch.arange(side) + 0.5
    weights = torch.exp(-((pixels[:, None] - nodes) ** 2) / (2 * sigma**2))
    weights = weights / weights.norm(dim=1, keepdim=True)
    count = len(nodes)
    noise = torch.from_numpy(keyed.normal(2 * count * count, seed, epoch, ids, view, "elastic")).float()
    field = weights @ noise.view(-1, 2, count, count) @ weights.T
    return field.permute(0, 2, 3, 1) * (settings.elastic * 2 / side)


def view(
    images: Tensor, settings: Characters, seed: int, epoch: int, ids: np.ndarray, name: str, side: int
) -> Tensor:
    """One random view of each image: uint8 [B, C, H, W] -> float32 [B, C, side, side] in [0, 1]."""
    device = images.device
    grid = affine_grid(
        affine_matrices(settings, seed, epoch, ids, name).to(device), [len(images), 1, side, side], align_corners=False
    )
    if settings.elastic:
        grid = grid + displacements(settings, seed, epoch, ids, name, side).to(device)
    views = grid_sample(images.float() / 255, grid, align_corners=False)
    if settings.stroke:
        views = stroke(views, settings, seed, epoch, ids, name)
    return contrast(views, settings, seed, epoch, ids, name)


def stroke(images: Tensor, settings: Characters, seed: int, epoch: int, ids: np.ndarray, name: str) -> Tensor:
    """Interpolates each image [B, C, H, W] towards its dilation, which widens strokes by a pixel on each side, or its
    erosion, which narrows them (3x3 maximum and minimum); the weight is uniform in ± ``settings.stroke``."""
    share = spread(keyed.uniform(1, seed, epoch, ids, name, "stroke"), -1, 1).to(images.device) * settings.stroke
    share = share.view(-1, 1, 1, 1)
    wide, narrow = max_pool2d(images, 3, 1, 1), -max_pool2d(-images, 3, 1, 1)
    return torch.where(share > 0, torch.lerp(images, wide, share), torch.lerp(images, narrow, -share))


def contrast(images: Tensor, settings: Characters, seed: int, epoch: int, ids: np.ndarray, name: str) -> Tensor:
    """Multiplies each image [B, ...], or each of its patches [B, P, ...], by a random factor and clamps to [0, 1]."""
    lead = images.shape[1] if images.ndim == 5 else 1
    factor = spread(keyed.uniform(lead, seed, epoch, ids, name, "contrast"), *settings.contrast).to(images.device)
    shape = (len(images), lead, 1, 1, 1) if images.ndim == 5 else (len(images), 1, 1, 1)
    return (images * factor.view(shape)).clamp(0, 1)
