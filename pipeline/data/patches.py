"""Patches of images in a fixed random order: which patch is the i-th is a pure function of the seed and i."""

import numpy as np
import torch
from torch import Tensor

from pipeline import keyed
from pipeline.data.loader import images
from pipeline.data.shards import Shards

HELD = 1 << 30  # bytes of decoded images kept in memory; a larger set is read again for each batch


class Patches:
    """Square patches at every position of every image, as a stream without end: each once, then each once again.

    ``side``: of the images in pixels; ``patch``: of a patch; ``pad``: zeros around each image. With patch = side it
    streams whole images. ``n``: patches there are.
    """

    def __init__(self, shards: Shards, side: int, patch: int, pad: int, seed: int):
        self.shards, self.side, self.patch, self.pad, self.seed = shards, side, patch, pad, seed
        self.across = side + 2 * pad - patch + 1
        self.n = shards.n * self.across**2
        self.held = None
        if shards.n * shards.image(side).channels * side * side <= HELD:
            self.held = images(shards, np.arange(shards.n), side)

    def take(self, index: np.ndarray) -> Tensor:
        """The patches at these places of the stream, int64 [N] -> uint8 [N, C, patch, patch]."""
        which = np.empty_like(index)
        for epoch in np.unique(index // self.n):
            now = index // self.n == epoch
            which[now] = keyed.permute(index[now] % self.n, self.n, self.seed, int(epoch), "patches")
        ids, place = np.divmod(which, self.across**2)
        if self.held is None:
            distinct, ids = np.unique(ids, return_inverse=True)
            pictures = images(self.shards, distinct, self.side)
        else:
            pictures = self.held
        y, x = (torch.from_numpy(v)[:, None] + torch.arange(self.patch) - self.pad for v in divmod(place, self.across))
        inside = ((y >= 0) & (y < self.side))[:, None, :, None] & ((x >= 0) & (x < self.side))[:, None, None, :]
        y, x = y.clamp(0, self.side - 1), x.clamp(0, self.side - 1)
        rows = torch.from_numpy(ids)[:, None, None]
        cut = pictures[rows, :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)
        return cut * inside
