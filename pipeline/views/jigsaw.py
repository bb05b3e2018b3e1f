"""PIRL's jigsaw patches (arXiv 1912.01991): a crop is divided into a grid of cells, each cell gives a patch at a
random position, and the patches are shuffled."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from pipeline import keyed
from pipeline.settings.objectives import Jigsaw
from pipeline.views import crops


def orders(seed: int, epoch: int, ids: np.ndarray, count: int) -> np.ndarray:
    """The order of each sample's patches, a uniform permutation in each row -> int64 [B, count]."""
    return keyed.uniform(count, seed, epoch, ids, "patches", "order").argsort(1)


def corners(seed: int, epoch: int, ids: np.ndarray, cells: int, cell: int, patch: int) -> np.ndarray:
    """The upper left corner (y, x) of every patch, random in its cell; cells row by row -> int64 [B, cells^2, 2]."""
    u = keyed.uniform(2 * cells * cells, seed, epoch, ids, "patches", "jitter").reshape(len(ids), -1, 2)
    y, x = np.divmod(np.arange(cells * cells), cells)
    return np.stack([y, x], 1) * cell + (u * (cell - patch + 1)).astype(np.int64)


def cut(crop: Tensor, at: np.ndarray, order: np.ndarray, patch: int) -> Tensor:
    """The patches of crops [B, C, S, S] at corners [B, P, 2], in ``order`` [B, P] -> [B, P, C, patch, patch]."""
    at = np.take_along_axis(at, order[..., None], 1)
    corner = torch.from_numpy(at).to(crop.device)
    run = torch.arange(patch, device=crop.device)
    y = (corner[..., 0, None] + run)[..., None]  # [B, P, patch, 1]
    x = (corner[..., 1, None] + run)[..., None, :]
    b = torch.arange(len(crop), device=crop.device).view(-1, 1, 1, 1)
    return crop.permute(0, 2, 3, 1)[b, y, x].permute(0, 1, 4, 2, 3)


@dataclass(frozen=True)
class Params:
    """The random numbers of the patches of B natural images. ``within``: the crop that they lie in, of ``side``
    pixels, a whole number of cells; ``corners``: of the patches in it, [B, P, 2]; ``order``: of the patches, [B, P];
    ``flips``: which of them, in that order, are mirrored, [B, P]."""

    within: crops.Params
    corners: np.ndarray
    order: np.ndarray
    flips: np.ndarray
    side: int

    def crop(self, image: Tensor, i: int, out: Tensor) -> None:
        """Writes the patches of the i-th image, uint8 [C, H, W], into ``out``, uint8 [P, patch, patch, C]."""
        crop = torch.empty(self.side, self.side, out.shape[-1], dtype=torch.uint8)
        self.within.crop(image, i, crop)
        pixels, patches, side = crop.numpy(), out.numpy(), out.shape[1]
        for shown, (which, flip) in enumerate(zip(self.order[i], self.flips[i], strict=True)):
            y, x = self.corners[i, which]
            patch = pixels[y : y + side, x : x + side]
            patches[shown] = patch[:, ::-1] if flip else patch


def draw(
    seed: int, epoch: int, ids: np.ndarray, settings: Jigsaw, side: int, ratio: tuple[float, float], flip: float
) -> Params:
    """Draws the patches that go with views of ``side`` pixels. ``flip``: the probability that a patch is mirrored."""
    cells, (cell, patch) = settings.cells, settings.geometry(side)
    return Params(
        crops.draw(seed, epoch, ids, "patches", settings.scale, ratio, 0),
        corners(seed, epoch, ids, cells, cell, patch),
        orders(seed, epoch, ids, cells**2),
        keyed.uniform(1, seed, epoch, ids[:, None], "patch", np.arange(cells**2), "flip")[..., 0] < flip,
        cells * cell,
    )


def patches(images: Tensor, settings: Jigsaw, side: int, seed: int, epoch: int, ids: np.ndarray) -> Tensor:
    """The random patches of small images, uint8 [B, C, H, W], that go with views of ``side`` pixels -> float32
    [B, P, C, patch, patch] in [0, 1]. None is mirrored."""
    cells, (cell, patch) = settings.cells, settings.geometry(side)
    crop = enlarge(images, settings.scale, cells * cell, seed, epoch, ids)
    at = corners(seed, epoch, ids, cells, cell, patch)
    return cut(crop, at, orders(seed, epoch, ids, cells**2), patch)


def enlarge(images: Tensor, scale: tuple[float, float], side: int, seed: int, epoch: int, ids: np.ndarray) -> Tensor:
    """A random square crop with an area uniform in ``scale`` times the image's, enlarged to ``side`` pixels (bilinear
    without antialias): uint8 [B, C, H, W] -> float32 [B, C, side, side] in [0, 1]."""
    u = torch.from_numpy(keyed.uniform(3, seed, epoch, ids, "patches", "crop")).float().to(images.device)
    extent = (scale[0] + (scale[1] - scale[0]) * u[:, 0]).sqrt()
    run = (torch.arange(side, device=images.device) + 0.5) * (2 / side) - 1
    centre = (2 * u[:, 1:] - 1) * (1 - extent)[:, None]
    y, x = (extent[:, None] * run + centre[:, i, None] for i in (0, 1))
    grid = torch.stack([x[:, None].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)], -1)
    return grid_sample(images.float() / 255, grid, padding_mode="border", align_corners=False)
