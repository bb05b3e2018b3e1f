"""Pictures as arrays: images laid out in a grid, and the views a training sees."""

import math

import numpy as np
import torch
from torch import Tensor

from pipeline.image import Image

SIDE = 64  # pixels at least, of one image of a sheet: small images are shown enlarged


def tile(images: Tensor, columns: int, gap: int = 2) -> np.ndarray:
    """Float images in [0, 1], [N, C, H, W] with C of 1 or 3 -> one sheet, uint8 [height, width, 3].

    Small images are enlarged by a whole factor without smoothing, so that their pixels can be seen.
    """
    images = images.detach().float().cpu().clamp(0, 1)
    zoom = max(1, SIDE // images.shape[-1])
    images = images.expand(-1, 3, -1, -1).repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    n, _, height, width = images.shape
    rows = -(-n // columns)
    sheet = torch.ones(3, rows * (height + gap) - gap, columns * (width + gap) - gap)
    for i, one in enumerate(images):
        y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[:, y : y + height, x : x + width] = one
    return (sheet * 255).round().byte().permute(1, 2, 0).numpy()


def views(batch: tuple[Tensor, ...], image: Image, rows: int = 8) -> np.ndarray:
    """A row a sample: its views side by side; patches or small crops in their order, put together as one."""
    shown = [image.denormalise(view[:rows].float().cpu()) for view in batch]
    if shown[-1].ndim == 5:
        patches = shown.pop()
        n, count, channels, side, _ = patches.shape
        edge = math.ceil(count**0.5)
        grid = torch.ones(n, channels, edge * (side + 1) - 1, edge * (side + 1) - 1)
        for i in range(count):
            y, x = (i // edge) * (side + 1), (i % edge) * (side + 1)
            grid[:, :, y : y + side, x : x + side] = patches[:, i]
        shown.append(grid)
    side = max(v.shape[-1] for v in shown)
    shown = [torch.nn.functional.interpolate(v, size=(side, side), mode="nearest") for v in shown]
    return tile(torch.stack(shown, 1).flatten(0, 1), columns=2 * len(shown))
