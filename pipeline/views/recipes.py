"""What a sample becomes: the image itself, two random views, or a view and nine patches.

A recipe works in two steps. ``cut`` sees one decoded image and makes its crops, uint8, on a CPU thread; ``finish``
sees the batch's crops on the device and does the rest. Every random number is a function of (seed, epoch, id, view,
operation). Where ``whole`` is true, cut is the identity, and batches can be taken from images held in memory.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline import keyed
from pipeline.errors import ConfigError
from pipeline.image import Image
from pipeline.settings.data import Characters, Crops, Views
from pipeline.settings.objectives import Jigsaw
from pipeline.views import affine, crops, jigsaw, photometrics


@dataclass(frozen=True)
class Recipe(ABC):
    """``image``: what views are made of and normalised by."""

    image: Image
    seed: int
    whole = True

    @abstractmethod
    def draws(self, epoch: int, ids: np.ndarray) -> object:
        """What `cut` and `finish` need to know of the samples."""

    def cut(self, image: Tensor, draws, i: int) -> tuple[Tensor, ...]:
        """One decoded image, the i-th of the batch, uint8 [C, H, W] -> its crops."""
        if image.shape[1:] != (self.image.side, self.image.side):
            raise ConfigError(
                f"an image of {image.shape[2]} x {image.shape[1]} pixels where {self.image.side} x "
                f"{self.image.side} were expected; pack with one size, or use views of the crops family"
            )
        return (image,)

    @abstractmethod
    def finish(self, cut: tuple[Tensor, ...], draws, device: torch.device) -> tuple[Tensor, ...]:
        """Crops of a batch, uint8 [B, ...] each -> the views, float32."""

    def normalise(self, x: Tensor) -> Tensor:
        shape = (self.image.channels, 1, 1)
        mean, std = (torch.tensor(v, device=x.device).view(shape) for v in (self.image.mean, self.image.std))
        return (x - mean) / std


@dataclass(frozen=True)
class Plain(Recipe):
    """The image itself, in [0, 1]."""

    def draws(self, epoch: int, ids: np.ndarray) -> None:
        return None

    def finish(self, cut: tuple[Tensor, ...], draws: None, device: torch.device) -> tuple[Tensor, ...]:
        return (cut[0].to(device, non_blocking=True).float() / 255,)


@dataclass(frozen=True)
class Bent(Recipe):
    """Views of characters: two, or one and the patches of ``jigsaw``."""

    views: Characters
    jigsaw: Jigsaw | None

    def draws(self, epoch: int, ids: np.ndarray) -> tuple[int, np.ndarray]:
        return epoch, ids

    def finish(
        self, cut: tuple[Tensor, ...], draws: tuple[int, np.ndarray], device: torch.device
    ) -> tuple[Tensor, ...]:
        images = cut[0].to(device, non_blocking=True)
        words = (self.views, self.seed, *draws)
        first = affine.view(images, *words, "one", self.image.side)
        if self.jigsaw is None:
            second = affine.view(images, *words, "two", self.image.side)
        else:
            second = affine.contrast(self.patches(images, self.jigsaw, *draws), *words, "patches")
        return self.normalise(first), self.normalise(second)

    def patches(self, images: Tensor, settings: Jigsaw, epoch: int, ids: np.ndarray) -> Tensor:
        cell, patch = jigsaw.geometry(self.image.side, settings)
        crop = jigsaw.enlarge(images, settings.scale, settings.cells * cell, self.seed, epoch, ids)
        at = jigsaw.corners(self.seed, epoch, ids, settings.cells, cell, patch)
        return jigsaw.cut(crop, at, jigsaw.shuffles(self.seed, epoch, ids, settings.cells**2), patch)


@dataclass(frozen=True)
class Cropped:
    """What is drawn for the samples of a batch: uniform numbers of both crops, colours of both views, and of the
    patches, where there are any, corners [B, P, 2], order and flips [B, P]."""

    boxes: tuple[np.ndarray, np.ndarray]
    colours: tuple[photometrics.Draws, photometrics.Draws]
    patches: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True)
class Natural(Recipe):
    """Views of natural images: two random crops, or one and the patches of ``jigsaw``, each with its own colours."""

    views: Crops
    jigsaw: Jigsaw | None
    whole = False

    def draws(self, epoch: int, ids: np.ndarray) -> Cropped:
        words = (self.seed, epoch, ids)
        first = crops.draws(*words, "one"), photometrics.draw(self.views, *words, "one")
        if self.jigsaw is None:
            second = crops.draws(*words, "two"), photometrics.draw(self.views, *words, "two")
            return Cropped((first[0], second[0]), (first[1], second[1]))
        count = self.jigsaw.cells**2
        each = (self.seed, epoch, ids[:, None], "patch", np.arange(count))
        colours = first[1], photometrics.draw(self.views, *each)
        at = jigsaw.corners(*words, self.jigsaw.cells, *jigsaw.geometry(self.image.side, self.jigsaw))
        flips = keyed.uniform(1, *each, "flip")[..., 0] < self.views.flip
        boxes = first[0], crops.draws(*words, "patches")
        return Cropped(boxes, colours, (at, jigsaw.shuffles(*words, count), flips))

    def cut(self, image: Tensor, draws: Cropped, i: int) -> tuple[Tensor, ...]:
        first = self.crop(image, draws.boxes[0][i], self.views.scale, self.views.flip, self.image.side)
        if self.jigsaw is None or draws.patches is None:
            return first, self.crop(image, draws.boxes[1][i], self.views.scale, self.views.flip, self.image.side)
        cell, patch = jigsaw.geometry(self.image.side, self.jigsaw)
        crop = self.crop(image, draws.boxes[1][i], self.jigsaw.scale, 0, self.jigsaw.cells * cell)
        at, order, flips = (drawn[i : i + 1] for drawn in draws.patches)
        patches = jigsaw.cut(crop[None], at, order, patch)[0]
        return first, torch.where(torch.from_numpy(flips).view(-1, 1, 1, 1), patches.flip(-1), patches)

    def crop(self, image: Tensor, u: np.ndarray, scale: tuple[float, float], flip: float, side: int) -> Tensor:
        _, height, width = image.shape
        (box,) = crops.boxes(u[None], height, width, scale, self.views.ratio)
        return crops.cut(image, box, bool(crops.flips(u[None], flip)), side)

    def finish(self, cut: tuple[Tensor, ...], draws: Cropped, device: torch.device) -> tuple[Tensor, ...]:
        return tuple(self.colour(c.to(device, non_blocking=True), d) for c, d in zip(cut, draws.colours, strict=True))

    def colour(self, crops: Tensor, draws: photometrics.Draws) -> Tensor:
        """uint8 [B, C, S, S] or [B, P, C, S, S] -> normalised float32 of the same shape."""
        reach = photometrics.radius(self.views, crops.shape[-1])
        flat = photometrics.apply(crops.reshape(-1, *crops.shape[-3:]), draws, reach)
        return self.normalise(flat).view(crops.shape)


def build(recipe: str, views: Views | None, image: Image, settings: Jigsaw | None, seed: int) -> Recipe:
    """The recipe that an objective asks for (image, two or jigsaw), with the views that the stage was given."""
    if recipe == "image" or views is None:
        return Plain(image, seed)
    patches = (settings or Jigsaw()) if recipe == "jigsaw" else None
    if isinstance(views, Characters):
        return Bent(image, seed, views, patches)
    return Natural(image, seed, views, patches)
