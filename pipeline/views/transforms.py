"""View transforms: they turn a sample into the input of an objective, which is the image itself, random views, or a
view and jigsaw patches.

A transform works in two steps. ``crop`` writes the crops of one decoded image, uint8, in a CPU thread; ``views``
computes the views of many samples from their crops, on the device. Every random number is a function of (seed, epoch,
id, view, operation) alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.errors import ConfigError, UserError
from pipeline.image import Image
from pipeline.settings.data import Characters, Crops, SmallCrops, View, Views
from pipeline.settings.objectives import Inputs, Jigsaw
from pipeline.views import affine, crops, jigsaw, own, photometrics

Tensors = tuple[Tensor, ...]
Shapes = tuple[tuple[int, ...], ...]
VIEWS = ("one", "two")
"""The key parts of the random numbers of the first and of the second view; those of later ones are "view 3", ..."""


def key_part(i: int) -> str:
    """That of the i-th view, from 0 on."""
    return VIEWS[i] if i < len(VIEWS) else f"view {i + 1}"


@dataclass(frozen=True)
class ViewTransform(ABC):
    """Turns images into views. ``image``: the images' channels, side and statistics; ``seed``: of the random
    numbers."""

    image: Image
    seed: int

    @property
    def crop_shapes(self) -> Shapes:
        """The shapes of a sample's crops, with the channels last."""
        return ((self.image.side, self.image.side, self.image.channels),)

    @property
    @abstractmethod
    def view_shapes(self) -> Shapes:
        """The shapes of a sample's views."""

    def params(self, epoch: int, ids: np.ndarray) -> Any:
        """The random numbers that `crop` needs for these samples."""
        return None

    def crop(self, image: Tensor, params: Any, i: int, out: Tensors) -> None:
        """Writes the crops of one decoded image, uint8 [C, H, W], to ``out``, uint8 of `crop_shapes`, by the i-th of
        ``params``. Raises ConfigError where the image's size does not fit."""
        if image.shape[1:] != (self.image.side, self.image.side):
            raise ConfigError(
                f"an image of {image.shape[2]} x {image.shape[1]} pixels where {self.image.side} x "
                f"{self.image.side} were expected; pack with one size, or use views of the crops family"
            )
        out[0].copy_(image.permute(1, 2, 0))

    def crop_rows(self, images: Tensor, rows: np.ndarray, params: Any, out: Tensors) -> None:
        """Writes the crops of the images at ``rows``, int64 [B], of uint8 [n, H, W, C] to ``out``, uint8 [B, ...]."""
        for i, row in enumerate(rows.tolist()):
            self.crop(images[row].permute(2, 0, 1), params, i, tuple(o[i] for o in out))

    @abstractmethod
    def views(self, crops: Tensors, epoch: int, ids: np.ndarray, out: Tensors | None = None) -> Tensors:
        """The views of samples, float32 [B, ...] each, from their crops, uint8 [B, ...] each. ``ids``: [B]; ``out``:
        where the views are written, if given."""


def channels_first(images: Tensor) -> Tensor:
    """Moves the channels: [..., H, W, C] -> [..., C, H, W]."""
    return images.movedim(-1, -3).contiguous()


def copied(views: Tensors, out: Tensors | None) -> Tensors:
    """The views, copied to ``out`` if it is given."""
    return views if out is None else tuple(o.copy_(v) for o, v in zip(out, views, strict=True))


@dataclass(frozen=True)
class ImageTransform(ViewTransform):
    """One view, which is the image itself in [0, 1]."""

    @property
    def view_shapes(self) -> Shapes:
        return (self.image.shape,)

    def views(self, crops: Tensors, epoch: int, ids: np.ndarray, out: Tensors | None = None) -> Tensors:
        return copied((channels_first(crops[0]).float() / 255,), out)


@dataclass(frozen=True)
class RandomTransform(ViewTransform):
    """Random views, one for each of ``settings``; with ``jigsaw``, the second is replaced by its patches."""

    settings: tuple[Any, ...]
    jigsaw: Jigsaw | None

    @property
    def view_shapes(self) -> Shapes:
        return tuple(self.patch_shape if self.patched(i) else self.image.shape for i in range(len(self.settings)))

    def patched(self, i: int) -> bool:
        """Whether the i-th view is jigsaw patches."""
        return i == 1 and self.jigsaw is not None

    @property
    def patch_shape(self) -> tuple[int, ...]:
        assert self.jigsaw is not None
        _, patch = self.jigsaw.geometry(self.image.side)
        return self.jigsaw.cells**2, self.image.channels, patch, patch


@dataclass(frozen=True)
class AffineTransform(RandomTransform):
    """Views of characters: affine and elastic transforms of the image (`affine`)."""

    settings: tuple[Characters, ...]

    def views(self, crops: Tensors, epoch: int, ids: np.ndarray, out: Tensors | None = None) -> Tensors:
        images = channels_first(crops[0])
        made = (self.view(i, images, epoch, ids) for i in range(len(self.settings)))
        return copied(tuple(self.image.normalise(view) for view in made), out)

    def view(self, i: int, images: Tensor, epoch: int, ids: np.ndarray) -> Tensor:
        """The i-th view of each image, in [0, 1]: uint8 [B, C, S, S] -> float32 [B, C, S, S], or its patches
        [B, P, C, patch, patch]."""
        key = (self.settings[i], self.seed, epoch, ids)
        if self.jigsaw is not None and self.patched(i):
            patches = jigsaw.patches(images, self.jigsaw, self.image.side, self.seed, epoch, ids)
            return affine.contrast(patches, *key, "patches")
        return affine.view(images, *key, key_part(i), self.image.side)


@dataclass(frozen=True)
class CropTransform(RandomTransform):
    """Views of natural images: random crops of the original, each with its own photometric operations. Small crops, if
    there are any, come last, with `small_settings`."""

    settings: tuple[Crops, ...]

    @property
    def small(self) -> SmallCrops | None:
        return self.settings[0].small

    @property
    def small_settings(self) -> Crops:
        """The photometric settings of small crops: the first view's, but for a blur of their own."""
        own = self.small.blur_p if self.small is not None else None
        return self.settings[0] if own is None else self.settings[0].model_copy(update={"blur_p": own})

    @property
    def view_shapes(self) -> Shapes:
        if self.small is None:
            return super().view_shapes
        return *super().view_shapes, (self.small.count, self.image.channels, self.small.size, self.small.size)

    @property
    def crop_shapes(self) -> Shapes:
        return tuple((*shape[:-3], *shape[-2:], shape[-3]) for shape in self.view_shapes)

    def params(self, epoch: int, ids: np.ndarray) -> list[crops.Params | jigsaw.Params]:
        """The random numbers of each view, then of each small crop."""
        drawn = [self.view_params(i, epoch, ids) for i in range(len(self.settings))]
        if self.small is None:
            return drawn
        small, ratio, flip = self.small, self.settings[0].ratio, self.settings[0].flip
        names = [f"small {j}" for j in range(small.count)]
        return drawn + [crops.draw(self.seed, epoch, ids, name, small.scale, ratio, flip) for name in names]

    def view_params(self, i: int, epoch: int, ids: np.ndarray) -> crops.Params | jigsaw.Params:
        settings = self.settings[i]
        if self.jigsaw is not None and self.patched(i):
            side = self.image.side
            return jigsaw.draw(self.seed, epoch, ids, self.jigsaw, side, settings.ratio, settings.flip)
        return crops.draw(self.seed, epoch, ids, key_part(i), settings.scale, settings.ratio, settings.flip)

    def crop(self, image: Tensor, params: Sequence[crops.Params | jigsaw.Params], i: int, out: Tensors) -> None:
        for each, room in zip(params, self.each(out, 0), strict=True):
            each.crop(image, i, room)

    def crop_rows(self, images: Tensor, rows: np.ndarray, params: Any, out: Tensors) -> None:
        if self.jigsaw is not None or not all(crops.fast(images.shape[1:3], o.shape[-2]) for o in out):
            return super().crop_rows(images, rows, params, out)
        for each, room in zip(params, self.each(out, 1), strict=True):
            each.crop_rows(images, rows, room)

    def each(self, out: Tensors, axis: int) -> Tensors:
        """The tensor that each of `params` writes to: those of the views, then the small crops, which ``out`` has in
        one tensor along ``axis``."""
        count = len(self.settings)
        return *out[:count], *(one for small in out[count:] for one in small.unbind(axis))

    def views(self, crops: Tensors, epoch: int, ids: np.ndarray, out: Tensors | None = None) -> Tensors:
        rooms = out or (None,) * len(crops)
        each = enumerate(zip(crops, rooms, strict=True))
        return tuple(self.colour(crop, i, self.key(i, epoch, ids), room) for i, (crop, room) in each)

    def key(self, i: int, epoch: int, ids: np.ndarray) -> tuple:
        """The key of the i-th view's photometric operations; each patch and each small crop has its own."""
        if self.jigsaw is not None and self.patched(i):
            return self.seed, epoch, ids[:, None], "patch", np.arange(self.jigsaw.cells**2)
        if self.small is not None and i == len(self.settings):
            return self.seed, epoch, ids[:, None], "small", np.arange(self.small.count)
        return self.seed, epoch, ids, key_part(i)

    def colour(self, crop: Tensor, i: int, key: tuple, out: Tensor | None) -> Tensor:
        """Applies the i-th view's photometric operations and normalises: uint8 [B, S, S, C] or [B, P, S, S, C] ->
        float32 [B, C, S, S] or [B, P, C, S, S]."""
        settings = self.settings[i] if i < len(self.settings) else self.small_settings
        views = crop.movedim(-1, -3)
        images, side = views.flatten(0, -4), views.shape[-1]
        draws, reach = photometrics.draw(settings, *key), photometrics.radius(settings, side)
        room = None if out is None else out.view(images.shape)
        return photometrics.finish(images, draws, reach, self.image, room).view(views.shape)


@dataclass(frozen=True)
class OwnTransform(RandomTransform):
    """Views by a class of a user's own file (`own.View`)."""

    settings: tuple[Any, ...]

    def views(self, crops: Tensors, epoch: int, ids: np.ndarray, out: Tensors | None = None) -> Tensors:
        images, made = channels_first(crops[0]).float() / 255, []
        for i, settings in enumerate(self.settings):
            draws = own.Draws(self.seed, epoch, ids, key_part(i), images.device)
            view = settings.made(settings, self.image).view(images.clone(), draws)
            if view.shape != images.shape:
                found, expected = list(view.shape), list(images.shape)
                raise UserError(f"{settings.kind} ({settings.file.path}) gives views {found}; expected {expected}")
            made.append(self.image.normalise(view.clamp(0, 1)))
        return copied(tuple(made), out)


def build(inputs: Inputs, views: Sequence[Views], image: Image, seed: int) -> ViewTransform:
    """The transform for an objective's ``inputs``. ``views``: the settings of each view, or one for
    ``inputs.views`` of them."""
    if inputs.views == 0:
        return ImageTransform(image, seed)
    each: Any = tuple(views) * inputs.views if len(views) == 1 else tuple(views)
    own_views = isinstance(each[0], View)
    if own_views and inputs.jigsaw is not None:
        raise ConfigError(f"views.kind: {each[0].kind} gives whole images, no patches; use pretext: rotation")
    kind = OwnTransform if own_views else AffineTransform if isinstance(each[0], Characters) else CropTransform
    return kind(image, seed, each, inputs.jigsaw)
