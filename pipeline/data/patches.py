"""The training data of sparse coding, in a keyed random order: patches of images, or an encoder's features.

The i-th patch or feature is a pure function of the seed and i.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import keyed
from pipeline.data.images import MEMORY, SquareImages
from pipeline.data.loader import MicroBatch
from pipeline.data.shards import Shards
from pipeline.errors import DataError
from pipeline.image import Image
from pipeline.settings.stages import Codes
from pipeline.sparse import features, solvers
from pipeline.sparse.features import Coder, Whitening
from pipeline.world import World

EXACT = 1e-6  # tolerance of the codes that LISTA is trained to predict
BATCH = 512  # images in one forward pass of the encoder


class Patches:
    """The square patches at every position of every image, as an endless sequence: every epoch is a permutation of
    all ``n`` patches.

    ``side``: pixels of an image's side; ``patch``: of a patch's; ``pad``: zeros around each image. With patch = side
    and no padding a patch is a whole image. ``memory``: bytes of decoded images that may be kept.
    """

    def __init__(self, shards: Shards, side: int, patch: int, pad: int, seed: int, memory: int = MEMORY):
        self.side, self.patch, self.pad, self.seed = side, patch, pad, seed
        self.images = SquareImages(shards, side, memory=memory)
        self.across = side + 2 * pad - patch + 1
        self.n = shards.n * self.across**2

    def take(self, index: np.ndarray) -> Tensor:
        """The patches at positions of the sequence, int64 [N] -> uint8 [N, C, patch, patch]."""
        ids, corner = np.divmod(self.permuted(index), self.across**2)
        images, rows = self.images.find(ids)
        corners = divmod(corner, self.across)
        y, x = (torch.from_numpy(v)[:, None] + torch.arange(self.patch) - self.pad for v in corners)
        inside = ((y >= 0) & (y < self.side))[:, None, :, None] & ((x >= 0) & (x < self.side))[:, None, None, :]
        y, x = y.clamp(0, self.side - 1), x.clamp(0, self.side - 1)
        return images[rows[:, None, None], :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2) * inside

    def permuted(self, index: np.ndarray) -> np.ndarray:
        """The patch at each position of the sequence, by its number; each epoch has its own order."""
        patches = np.empty_like(index)
        for epoch in np.unique(index // self.n):
            now = index // self.n == epoch
            patches[now] = keyed.permute(index[now] % self.n, self.n, self.seed, int(epoch), "patches")
        return patches


class Signals:
    """The signals of one split in keyed order: contrast-normalised patches, or an encoder's features of images.

    ``encoder`` maps uint8 images to features; without one, the signals are patches. ``image``: the images that
    patches are cut from, or that the encoder takes; ``size``: dimension of a signal; ``n``: signals in an epoch.
    """

    def __init__(
        self, settings: Codes, shards: Shards, seed: int, device: torch.device, encoder: Any = None
    ):
        self.settings, self.device, self.encoder = settings, device, encoder
        self.image: Image = shards.image(settings.side) if encoder is None else encoder.image
        patch, pad = (settings.patch, settings.pad) if encoder is None else (self.image.side, 0)
        self.patches = Patches(shards, self.image.side, patch, pad, seed)
        self.n = self.patches.n
        self.size = self.take(np.zeros(1, np.int64)).shape[1]

    @torch.no_grad()
    def take(self, index: np.ndarray) -> Tensor:
        """The signals at positions of the order, int64 [N] -> float32 [N, size]; not whitened. Raises DataError where
        the encoder's features are not finite."""
        patches = self.patches.take(index).to(self.device)
        if self.encoder is None:
            return features.normalise(patches.flatten(1).float() / 255, self.settings.contrast)
        rows = torch.cat([self.encoder(part) for part in patches.split(BATCH)])
        if not torch.isfinite(rows).all():
            raise DataError(
                f"{self.settings.encoder}: its features are not all finite; train it again with a lower learning rate"
            )
        return rows


class SignalLoader:
    """Batches of whitened signals for the training loop, in the order of `Signals`: batch t is positions [tB, (t+1)B),
    of which each rank has its share. For supervised LISTA the second view is the signals' optimal codes."""

    seconds: dict[str, float] = {}
    bad = 0

    def __init__(self, settings: Codes, signals: Signals, coder: Coder, world: World):
        self.settings, self.signals, self.coder, self.world = settings, signals, coder, world
        self.steps_per_epoch = max(1, signals.n // settings.lista_batch)

    def steps(self, start: int) -> Iterator[tuple[int, int, list[MicroBatch]]]:
        """(step, epoch, this rank's one micro-batch) from ``start`` on."""
        share = self.settings.lista_batch // self.world.size
        white = Whitening(self.coder.mean, self.coder.zca)
        for step in range(start, self.settings.lista_steps):
            index = step * self.settings.lista_batch + self.world.rank * share + np.arange(share)
            y = white(self.signals.take(index))
            views = (y, self.exact(y)) if getattr(self.settings.lista, "loss", "") == "code" else (y,)
            yield step, step // self.steps_per_epoch, [MicroBatch(views, torch.from_numpy(index).to(y.device))]

    def exact(self, y: Tensor) -> Tensor:
        return solvers.encode(y, self.coder.dictionary, self.settings.penalty, EXACT).z
