"""Image files to pixels, strictly: what cannot be read whole raises, in words for a ledger."""

import io
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

try:
    import simplejpeg
except ImportError:  # Pillow then decodes, to the same pixels; but it lets a scan with flipped bits pass
    simplejpeg: Any = None

MOST_PIXELS = 178_956_970
"""As Pillow's own guard against decompression bombs doubled: larger headers are refused before any decoding."""
LEAST_SIDE = 8
"""Pixels. A narrower image is a broken thumbnail or a tracking pixel, and no view can be cut from it."""


class TooSmall(ValueError):
    """An image with a side under LEAST_SIDE."""


class Scratch:
    """Memory for decoded pixels that one thread uses again and again: fresh memory costs a page fault each 4 KB."""

    def __init__(self) -> None:
        self.pixels = np.empty(0, np.uint8)

    def room(self, size: int) -> np.ndarray:
        if self.pixels.size < size:
            self.pixels = np.empty(size, np.uint8)
        return self.pixels


def decode(data: bytes | memoryview, channels: int, scratch: Scratch | None = None) -> Tensor:
    """The bytes of a JPEG, PNG, WebP, GIF, BMP or TIFF -> uint8 [channels, H, W], channels 1 or 3, in memory as
    [H, W, channels].

    EXIF orientation is ignored, sixteen bits are scaled by 1/257, transparency is laid on white. Where ``scratch`` is
    given the pixels may lie in it, until its next use. Raises ValueError.
    """
    if not len(data):
        raise ValueError("no bytes")
    pixels = jpeg(data, channels, scratch) if simplejpeg is not None and bytes(data[:2]) == b"\xff\xd8" else None
    if pixels is None:
        pixels = np.array(flat(opened(data), "L" if channels == 1 else "RGB"))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)


def check(height: int, width: int) -> None:
    """Raises ValueError for sizes that are not worth decoding, or would take all memory."""
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width} x {height} pixels are too many")
    if min(width, height) < LEAST_SIDE:
        raise TooSmall(f"{width} x {height} pixels: a side of fewer than {LEAST_SIDE}")


def jpeg(data: bytes | memoryview, channels: int, scratch: Scratch | None) -> np.ndarray | None:
    """uint8 [H, W, channels]; None for the kinds that are left to Pillow: four colours, and colour to be greyed."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None  # a header it does not know; Pillow says what is wrong, if anything is
    if space not in (("Gray",) if channels == 1 else ("Gray", "YCbCr", "RGB")):
        return None
    check(int(height), int(width))
    buffer = None if scratch is None else scratch.room(height * width * channels)
    return simplejpeg.decode_jpeg(data, "GRAY" if channels == 1 else "RGB", buffer=buffer)


def opened(data: bytes | memoryview):
    """A Pillow image, its pixels loaded."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            check(image.height, image.width)
            image.load()
    except UnidentifiedImageError as error:
        raise ValueError("not an image") from error
    except (OSError, SyntaxError, Image.DecompressionBombError, EOFError, IndexError, OverflowError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    return image


def flat(image, mode: str):
    """A Pillow image of any mode -> L or RGB of eight bits."""
    from PIL import Image

    if image.mode.startswith("I"):  # sixteen bits: Pillow's own conversion saturates
        image = Image.fromarray(np.round(np.asarray(image).clip(0, 65535) / 257).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)
