"""Image files to pixels, strictly: what cannot be read whole raises, in words for a ledger."""

import io
import warnings

import numpy as np
import torch
from torch import Tensor

MOST_PIXELS = 178_956_970
"""As Pillow's own guard against decompression bombs doubled: larger headers are refused before any decoding."""


def decode(data: bytes, channels: int) -> Tensor:
    """The bytes of a JPEG, PNG, WebP, GIF, BMP or TIFF -> uint8 [channels, H, W], channels 1 or 3.

    EXIF orientation is ignored, sixteen bits are scaled by 1/257, transparency is laid on white. Raises ValueError.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise ValueError("no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            image.load()
    except UnidentifiedImageError as error:
        raise ValueError("not an image") from error
    except (OSError, SyntaxError, Image.DecompressionBombError, EOFError, IndexError, OverflowError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    pixels = np.array(flat(image, "L" if channels == 1 else "RGB"))
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(pixels))


def flat(image, mode: str):
    """A Pillow image of any mode -> L or RGB of eight bits."""
    from PIL import Image

    if image.mode.startswith("I"):  # sixteen bits: Pillow's own conversion saturates
        image = Image.fromarray(np.round(np.asarray(image).clip(0, 65535) / 257).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)
