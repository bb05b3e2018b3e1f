"""What a sample becomes: the image itself, two random views, or a view and nine patches.

A recipe works in two steps. ``cut`` sees one decoded image and makes its crops, uint8, on a CPU thread; ``finish``
sees the batch's crops on the device and does the rest. Every random number is a function of (seed, epoch, id, view,
operation). Where ``whole`` is true, cut is the identity, and batches can be taken from images held in memory.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.image import Image
from pipeline.settings.data import Characters, Views
from pipeline.settings.objectives import Jigsaw
from pipeline.views import affine, jigsaw


@dataclass(frozen=True)
class Recipe:
    """``name``: image, two or jigsaw. ``crops``: how many tensors `cut` gives for a sample."""

    name: str
    views: Views | None
    image: Image
    jigsaw: Jigsaw
    seed: int
    crops: int = 1
    whole: bool = True

    def draws(self, epoch: int, ids: np.ndarray) -> tuple[int, np.ndarray]:
        return epoch, ids

    def cut(self, image: Tensor, draws: tuple[int, np.ndarray], i: int) -> tuple[Tensor, ...]:
        """One decoded image, uint8 [C, H, W] -> its crops."""
        if image.shape[1:] != (self.image.side, self.image.side):
            raise ConfigError(
                f"an image of {image.shape[2]} x {image.shape[1]} pixels where {self.image.side} x "
                f"{self.image.side} were expected; pack with one size, or use views of the crops family"
            )
        return (image,)

    def finish(self, crops: tuple[Tensor, ...], draws: tuple[int, np.ndarray], device: torch.device):
        """Crops of a batch, uint8 [B, C, S, S] each -> the views, float32: normalised, or in [0, 1] for image."""
        (images,) = (c.to(device, non_blocking=True) for c in crops)
        if self.name == "image":
            return (images.float() / 255,)
        assert isinstance(self.views, Characters)
        epoch, ids = draws
        words = (self.views, self.seed, epoch, ids)
        first = affine.view(images, *words, "one", self.image.side)
        if self.name == "two":
            return self.normalise(first), self.normalise(affine.view(images, *words, "two", self.image.side))
        cell, patch = jigsaw.geometry(self.image.side, self.jigsaw)
        cells = self.jigsaw.cells
        crop = jigsaw.enlarge(images, self.jigsaw.scale, cells * cell, self.seed, epoch, ids)
        at = jigsaw.corners(self.seed, epoch, ids, cells, cell, patch)
        patches = jigsaw.cut(crop, at, jigsaw.shuffles(self.seed, epoch, ids, cells * cells), patch)
        return self.normalise(first), self.normalise(affine.contrast(patches, *words, "patches"))

    def normalise(self, x: Tensor) -> Tensor:
        shape = (self.image.channels, 1, 1)
        mean, std = (torch.tensor(v, device=x.device).view(shape) for v in (self.image.mean, self.image.std))
        return (x - mean) / std


def build(recipe: str, views: Views | None, image: Image, jigsaw_settings: Jigsaw | None, seed: int) -> Recipe:
    """The recipe that an objective asks for, with the views that the stage was given."""
    return Recipe(recipe, views, image, jigsaw_settings or Jigsaw(), seed)
