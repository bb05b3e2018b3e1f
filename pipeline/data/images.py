"""Keeps decoded images in memory where they fit, so that images which are read more than once are decoded once."""

import math
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pipeline.data.memory import SharedMemory
from pipeline.data.reader import BadSample, read
from pipeline.data.shards import Shards
from pipeline.errors import DataError
from pipeline.lines import legible
from pipeline.views.decode import Scratch, TooSmall, decode

MEMORY = 1 << 30
"""Bytes of decoded images that may be kept in memory; a larger set is decoded again at every use."""


def fits(n: int, channels: int, height: int, width: int, memory: int = MEMORY) -> bool:
    """Whether ``n`` decoded images of this shape may be kept in ``memory`` bytes."""
    return n * channels * height * width <= memory


def pixels(data: bytes, channels: int, exif_orientation: bool, scratch: Scratch | None = None) -> Tensor:
    """Decodes an image file -> uint8 [C, H, W]. Raises BadSample where it cannot be decoded or is too small."""
    try:
        return decode(data, channels, scratch, exif_orientation)
    except ValueError as error:
        raise BadSample("too small" if isinstance(error, TooSmall) else "undecodable", str(error)) from error


class DecodedImages:
    """``n`` images of one ``shape`` (H, W, C) in memory that worker processes share: ``images``, uint8 [n, H, W, C],
    and which of them could not be read, ``broken``, bool [n]."""

    def __init__(self, n: int, shape: tuple[int, int, int], memory: SharedMemory | None = None):
        self.n, self.shape = n, shape
        self.memory = memory or SharedMemory(n * (math.prod(shape) + 1))
        self.images, broken = self.memory.tensors([(n, *shape), (n,)])
        self.broken = broken.numpy().view(bool)

    def __reduce__(self) -> tuple:
        return DecodedImages, (self.n, self.shape, self.memory)


def images(shards: Shards, ids: np.ndarray, side: int) -> Tensor:
    """Images as an encoder is evaluated on them, uint8 [n, C, side, side]. Those of another size are resized, the
    short side to 8/7 of ``side`` (256 for 224), and centre-cropped. Raises DataError for an unreadable one, which is
    not replaced: an evaluation is of exactly these images."""
    channels, exif_orientation = (shards.manifest[name] for name in ("channels", "exif_orientation"))
    out = torch.empty(len(ids), channels, side, side, dtype=torch.uint8)
    for i, sample in enumerate(np.asarray(ids).tolist()):
        try:
            image = pixels(read(shards, sample), channels, exif_orientation)
        except BadSample as error:
            raise DataError(f"{shards.where(sample)}: {error}; pack again") from error
        out[i] = image if image.shape[1:] == (side, side) else centre(image, side)
    return out


def whole(shards: Shards, ids: np.ndarray, side: int) -> Tensor:
    """All of each image, for people to look at: float [n, C, side, side] in [0, 1], the long side resized to ``side``
    and the rest white. Raises BadSample for an unreadable one."""
    channels, exif_orientation = (shards.manifest[name] for name in ("channels", "exif_orientation"))
    out = torch.ones(len(ids), channels, side, side)
    for i, sample in enumerate(np.asarray(ids).tolist()):
        image = pixels(read(shards, sample), channels, exif_orientation).float() / 255
        height, width = (max(1, round(side * length / max(image.shape[1:]))) for length in image.shape[1:])
        if image.shape[1:] != (height, width):
            image = interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]
        y, x = (side - height) // 2, (side - width) // 2
        out[i, :, y : y + height, x : x + width] = image
    return out


def class_names(shards: Shards, ids: np.ndarray) -> list[str]:
    """The names of the images' classes, their numbers where those have none, "" without a label."""
    names = shards.classes
    labels = shards.labels[ids].tolist()
    return ["" if label < 0 else legible(names[label]) if names else str(label) for label in labels]


def centre(image: Tensor, side: int) -> Tensor:
    """Resize with antialias, short side to 8/7 of ``side``, and centre crop: uint8 [C, H, W] -> [C, side, side]."""
    from torchvision.transforms.v2 import functional as F

    return F.center_crop(F.resize(image, [side * 8 // 7], antialias=True), [side, side])


class SquareImages:
    """The images of ``ids`` (None: of the whole split), each resized and cropped as by `images`. An index into them
    counts from 0 in the order of ``ids``; ``n``: how many. They are decoded at their first use, and kept where all
    fit in ``memory`` bytes."""

    def __init__(self, shards: Shards, side: int, ids: np.ndarray | None = None, memory: int = MEMORY):
        self.shards, self.side = shards, side
        self.ids = np.arange(shards.n) if ids is None else ids
        self.n = len(self.ids)
        self.resident = fits(self.n, shards.manifest["channels"], side, side, memory)

    @cached_property
    def pixels(self) -> Tensor:
        """All images, uint8 [n, C, side, side]."""
        return images(self.shards, self.ids, self.side)

    def find(self, index: np.ndarray) -> tuple[Tensor, Tensor]:
        """A tensor that holds the images of ``index``, uint8 [m, C, side, side], and the row of each there, int64
        [len(index)]. An image that stands in ``index`` twice is decoded once."""
        if self.resident:
            return self.pixels, torch.from_numpy(index)
        distinct, rows = np.unique(index, return_inverse=True)
        return images(self.shards, self.ids[distinct], self.side), torch.from_numpy(rows)

    def take(self, index: np.ndarray) -> Tensor:
        """The images of ``index``, uint8 [len(index), C, side, side]."""
        stack, rows = self.find(index)
        return stack[rows]

    def batches(self, size: int) -> Iterator[Tensor]:
        """All images in order, at most ``size`` at a time."""
        for start in range(0, self.n, size):
            yield self.take(np.arange(start, min(start + size, self.n)))
