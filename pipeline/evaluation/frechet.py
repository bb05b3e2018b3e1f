"""The Frechet distance between samples and images, by features that any encoder gives (Heusel et al. 2017, arXiv
1706.08500, eq. 6). It is of these features alone, and of this number of images: never "the FID".
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

SIDE = 7
"""Cells on a side of images that are their own features."""
BATCH = 256


class Cells(nn.Module):
    """Images' means over a grid of cells: what is measured where no encoder is named. uint8 [B, C, H, W] -> [B, D]."""

    def forward(self, images: Tensor) -> Tensor:
        return adaptive_avg_pool2d(images.float() / 255, min(SIDE, images.shape[-1])).flatten(1)


def distance(first: Tensor, second: Tensor) -> float:
    """|| m1 - m2 ||^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2) of features [n, D] and [m, D], in float64."""
    (m1, c1), (m2, c2) = ((x.mean(0), torch.cov(x.T).view(x.shape[1], -1)) for x in (first.double(), second.double()))
    values, vectors = torch.linalg.eigh(c1)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    both = torch.linalg.eigvalsh(root @ c2 @ root).clamp(min=0).sqrt().sum()
    return float((m1 - m2).square().sum() + c1.trace() + c2.trace() - 2 * both)


@torch.no_grad()
def measure(samples: Tensor, test: Tensor, train: Tensor, encoder: nn.Module, name: str) -> dict[str, Any]:
    """The distance of samples from test images, and beside it that of as many training images, [n, C, H, W] each in
    [0, 1], by the encoder of this name."""
    sets = [(x.clamp(0, 1) * 255).round().byte() for x in (samples, test, train)]
    drawn, tested, trained = (torch.cat([encoder(part) for part in x.split(BATCH)]) for x in sets)
    by = f"{len(samples):,} samples against as many test images, features of {name} ({drawn.shape[1]})"
    return {
        "frechet": distance(drawn, tested),
        "frechet_floor": distance(trained, tested),
        "frechet_protocol": by,
    }
