"""What a sample becomes: the image itself, two random views, or a view and nine patches.

A recipe works in two steps. ``cut`` sees one decoded image and writes its crops, uint8, on a CPU thread; ``finish``
sees many samples' crops on the device and makes the views. Every random number is a function of (seed, epoch, id,
view, operation), and of nothing else. Where ``whole`` is true, cut is the identity.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.image import Image
from pipeline.settings.data import Characters, Crops, Views
from pipeline.settings.objectives import Jigsaw
from pipeline.views import affine, crops, jigsaw, photometrics

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Recipe(ABC):
    """``image``: what views are made of and normalised by."""

    image: Image
    seed: int
    whole = True

    @property
    def crop_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of a sample's crops, with the channels last."""
        return ((self.image.side, self.image.side, self.image.channels),)

    @property
    @abstractmethod
    def view_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of a sample's views."""

    def places(self, epoch: int, ids: np.ndarray) -> object:
        """What `cut` needs to know of these samples."""
        return None

    def cut(self, image: Tensor, places, i: int, out: Tensors) -> None:
        """One decoded image, uint8 [C, H, W], the i-th of ``places`` -> its crops, uint8 of `crop_shapes`."""
        if image.shape[1:] != (self.image.side, self.image.side):
            raise ConfigError(
                f"an image of {image.shape[2]} x {image.shape[1]} pixels where {self.image.side} x "
                f"{self.image.side} were expected; pack with one size, or use views of the crops family"
            )
        out[0].copy_(image.permute(1, 2, 0))

    def cut_rows(self, images: Tensor, rows: np.ndarray, places, out: Tensors) -> None:
        """The same of many images of one size, uint8 [n, H, W, C]: those at ``rows``, int64 [B] -> crops [B, ...]."""
        for i, row in enumerate(rows.tolist()):
            self.cut(images[row].permute(2, 0, 1), places, i, tuple(o[i] for o in out))

    @abstractmethod
    def finish(self, cut: Tensors, epoch: int, ids: np.ndarray, out: Tensors | None = None) -> Tensors:
        """Crops of samples [B], uint8 [B, ...] -> the views, float32 [B, ...] (in ``out``, if that is given)."""

    def normalise(self, x: Tensor) -> Tensor:
        shape = (self.image.channels, 1, 1)
        mean, std = (torch.tensor(v, device=x.device).view(shape) for v in (self.image.mean, self.image.std))
        return (x - mean) / std


def first(images: Tensor) -> Tensor:
    """[..., H, W, C] -> [..., C, H, W]."""
    return images.movedim(-1, -3).contiguous()


def given(views: Tensors, out: Tensors | None) -> Tensors:
    return views if out is None else tuple(o.copy_(v) for o, v in zip(out, views, strict=True))


@dataclass(frozen=True)
class Plain(Recipe):
    """The image itself, in [0, 1]."""

    @property
    def view_shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((self.image.channels, self.image.side, self.image.side),)

    def finish(self, cut: Tensors, epoch: int, ids: np.ndarray, out: Tensors | None = None) -> Tensors:
        return given((first(cut[0]).float() / 255,), out)


@dataclass(frozen=True)
class Random(Recipe):
    """Two random views, or one and the patches of ``jigsaw``."""

    jigsaw: Jigsaw | None

    @property
    def view_shapes(self) -> tuple[tuple[int, ...], ...]:
        one = (self.image.channels, self.image.side, self.image.side)
        return one, (one if self.jigsaw is None else (self.jigsaw.cells**2, one[0], self.patch, self.patch))

    @property
    def cell(self) -> int:
        assert self.jigsaw is not None
        return jigsaw.geometry(self.image.side, self.jigsaw)[0]

    @property
    def patch(self) -> int:
        assert self.jigsaw is not None
        return jigsaw.geometry(self.image.side, self.jigsaw)[1]


@dataclass(frozen=True)
class Bent(Random):
    """Views of characters."""

    settings: Characters

    def finish(self, cut: Tensors, epoch: int, ids: np.ndarray, out: Tensors | None = None) -> Tensors:
        images = first(cut[0])
        words = (self.settings, self.seed, epoch, ids)
        one = affine.view(images, *words, "one", self.image.side)
        if self.jigsaw is None:
            two = affine.view(images, *words, "two", self.image.side)
        else:
            two = affine.contrast(self.patches(images, self.jigsaw, epoch, ids), *words, "patches")
        return given((self.normalise(one), self.normalise(two)), out)

    def patches(self, images: Tensor, settings: Jigsaw, epoch: int, ids: np.ndarray) -> Tensor:
        cells = settings.cells
        crop = jigsaw.enlarge(images, settings.scale, cells * self.cell, self.seed, epoch, ids)
        at = jigsaw.corners(self.seed, epoch, ids, cells, self.cell, self.patch)
        return jigsaw.cut(crop, at, jigsaw.shuffles(self.seed, epoch, ids, cells**2), self.patch)


@dataclass(frozen=True)
class Natural(Random):
    """Views of natural images: crops of the original, each with colours of its own."""

    settings: Crops
    whole = False

    @property
    def view_shapes(self) -> tuple[tuple[int, ...], ...]:
        small = self.settings.small
        if small is None:
            return super().view_shapes
        return *super().view_shapes, (small.count, self.image.channels, small.size, small.size)

    @property
    def crop_shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple((*shape[:-3], *shape[-2:], shape[-3]) for shape in self.view_shapes)

    def places(self, epoch: int, ids: np.ndarray) -> tuple[crops.Places | jigsaw.Places, ...]:
        words, ratio, flip = (self.seed, epoch, ids), self.settings.ratio, self.settings.flip
        one = crops.draw(*words, "one", self.settings.scale, ratio, flip)
        if self.jigsaw is not None:
            return one, jigsaw.draw(*words, self.jigsaw, self.cell, self.patch, ratio, flip)
        two, small = crops.draw(*words, "two", self.settings.scale, ratio, flip), self.settings.small
        if small is None:
            return one, two
        return one, two, *(crops.draw(*words, f"small {j}", small.scale, ratio, flip) for j in range(small.count))

    def cut(self, image: Tensor, places, i: int, out: Tensors) -> None:
        crops.cut(image, places[0], i, out[0])
        if self.jigsaw is None:
            crops.cut(image, places[1], i, out[1])
        else:
            jigsaw.cut_one(image, places[1], i, out[1])
        for j, place in enumerate(places[2:]):
            crops.cut(image, place, i, out[2][j])

    def cut_rows(self, images: Tensor, rows: np.ndarray, places, out: Tensors) -> None:
        if self.jigsaw is not None or not all(crops.fast(images.shape[1:3], o.shape[-2]) for o in out):
            return super().cut_rows(images, rows, places, out)
        for place, into in zip(places, [*out[:2], *(out[2].unbind(1) if len(out) > 2 else ())], strict=True):
            crops.cut_rows(images, rows, place, into)

    def finish(self, cut: Tensors, epoch: int, ids: np.ndarray, out: Tensors | None = None) -> Tensors:
        words = (self.seed, epoch, ids)
        one: tuple = (*words, "one")
        two: tuple = (*words, "two")
        if self.jigsaw is not None:  # colours for each patch
            two = (self.seed, epoch, ids[:, None], "patch", np.arange(self.jigsaw.cells**2))
        every = [one, two]
        if self.settings.small is not None:
            every.append((self.seed, epoch, ids[:, None], "small", np.arange(self.settings.small.count)))
        into = out or (None,) * len(every)
        return tuple(self.colour(*each) for each in zip(cut, every, into, strict=True))

    def colour(self, cut: Tensor, words: tuple, out: Tensor | None) -> Tensor:
        """uint8 [B, S, S, C] or [B, P, S, S, C] -> normalised float32 with the channels before S."""
        views = cut.movedim(-1, -3)
        each, side = views.flatten(0, -4), views.shape[-1]
        draws, reach = photometrics.draw(self.settings, *words), photometrics.radius(self.settings, side)
        into = None if out is None else out.view(each.shape)
        return photometrics.finish(each, draws, reach, self.image.mean, self.image.std, into).view(views.shape)


def build(recipe: str, views: Views | None, image: Image, settings: Jigsaw | None, seed: int) -> Recipe:
    """The recipe that an objective asks for (image, two or jigsaw), with the views that the stage was given."""
    if recipe == "image" or views is None:
        return Plain(image, seed)
    patches = (settings or Jigsaw()) if recipe == "jigsaw" else None
    if isinstance(views, Characters):
        return Bent(image, seed, patches, views)
    return Natural(image, seed, patches, views)
