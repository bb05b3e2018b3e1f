"""Image files to pixels, strictly: what cannot be read whole raises, in the words that the log of bad samples gets."""

import io
import warnings
from collections.abc import Callable
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


TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[:, ::-1],
    7: lambda x: x.swapaxes(0, 1)[::-1, ::-1],
    8: lambda x: x.swapaxes(0, 1)[::-1],
}
"""What makes an image upright, by its EXIF orientation (1: as it lies)."""
ORIENTATION = 0x0112
BITS, PHOTOMETRIC, SAMPLE_FORMAT, WHITE_IS_ZERO, UNSIGNED = 258, 262, 339, 0, 1
"""Tags of a TIFF, and what they may say (TIFF 6.0)."""


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


def decode(
    data: bytes | memoryview, channels: int, scratch: Scratch | None = None, exif_orientation: bool = True
) -> Tensor:
    """The bytes of an image file of any format that Pillow reads -> uint8 [channels, H, W], channels 1 or 3, in memory
    as [H, W, channels]. Of several frames the first.

    Sixteen bits are scaled by 1/257. Numbers of 32 bits have no white of their own: as ImageJ shows them, the least
    finite one is black and the greatest white; where all are equal the image is refused. Transparency is laid on
    white. With ``exif_orientation`` the image is turned as its EXIF data say, whatever its format. Where ``scratch``
    is given the pixels may lie in it, until its next use. Raises ValueError, whatever a decoder raised.
    """
    if not len(data):
        raise ValueError("no bytes")
    mode = "L" if channels == 1 else "RGB"
    try:
        pixels = jpeg(data, channels, scratch) if simplejpeg is not None and bytes(data[:2]) == b"\xff\xd8" else None
        if pixels is not None:
            turn = jpeg_orientation(data) if exif_orientation else 1
        else:
            image, turn = open_image(data)
            pixels = np.array(to_eight_bits(image, mode))
    except ValueError:
        raise
    except MemoryError as error:
        raise ValueError("not enough memory to decode it") from error
    except Exception as error:  # on damage decoders raise RuntimeError, SyntaxError, struct.error, KeyError, ...
        raise ValueError((str(error).splitlines() or [""])[0] or type(error).__name__) from error
    pixels = pixels.reshape(*pixels.shape[:2], channels)
    if exif_orientation and turn in TURNS:
        pixels = np.ascontiguousarray(TURNS[turn](pixels))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def jpeg_orientation(data: bytes | memoryview) -> int:
    """The orientation that a JPEG's header names; 1 where it names none."""
    from PIL import Image

    content = bytes(data)
    scan = content.find(b"\xff\xda")  # of what comes before it: a thumbnail's scan, too, only EXIF data hold
    if not any(name in content[: None if scan < 0 else scan] for name in (b"Exif\0\0", b"tiff:Orientation")):
        return 1  # most have neither: opening them with Pillow costs a tenth of decoding them
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pop_orientation(Image.open(io.BytesIO(content)))
    except Exception:  # simplejpeg has decoded it: a header that Pillow cannot read says nothing
        return 1


def pop_orientation(image: Any) -> int:
    """The orientation of a Pillow image, taken out of it."""
    try:
        return int(image.getexif().pop(ORIENTATION, 1))
    except Exception:  # damaged EXIF data beside sound pixels
        return 1


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


def open_image(data: bytes | memoryview) -> tuple[Any, int]:
    """A Pillow image, its pixels loaded as they lie, and its EXIF orientation."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            check(image.height, image.width)
            scale_transparency(image, data)
            turn = pop_orientation(image) if image.format == "TIFF" else 0  # which Pillow turns while it loads
            image.load()
            turn = turn or pop_orientation(image)  # of a PNG this would load it, and hide its damage, if asked before
    except UnidentifiedImageError as error:
        raise ValueError("not an image") from error
    return image, turn


def scale_transparency(image: Any, data: bytes | memoryview) -> None:
    """The transparent value of a PNG of 2, 4 or three times 16 bits on the scale of the eight into which Pillow makes
    its pixels."""
    clear = image.info.get("transparency")
    if image.format == "PNG" and clear is not None:
        depth = data[24]
        if image.mode == "L" and depth < 8:
            image.info["transparency"] = clear * 255 // ((1 << depth) - 1)
        if image.mode == "RGB" and depth == 16:
            image.info["transparency"] = tuple(value >> 8 for value in clear)


def to_eight_bits(image: Any, mode: str) -> Any:
    """A Pillow image of any mode -> L or RGB of eight bits."""
    from PIL import Image

    clear = image.info.get("transparency")
    if image.mode.startswith("I") or image.mode == "F":
        values = numbers(image)
        grey = levels(values, image)
        if isinstance(clear, int):
            grey[values == clear] = 255
        return Image.fromarray(grey).convert(mode)
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("RGBA", "RGBa", "LA", "PA") or clear is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def numbers(image: Any) -> np.ndarray:
    """The values of a grey image of 16 or 32 bits, [H, W], as its file means them."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    if tags.get(SAMPLE_FORMAT, (UNSIGNED,))[0] == UNSIGNED and tags.get(BITS, (0,))[0] == 32:
        return values.view(np.uint32)  # Pillow has no such mode, and reads them as signed
    return values


def levels(values: np.ndarray, image: Any) -> np.ndarray:
    """Those values as uint8 [H, W]."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        grey = np.round(values.clip(0, 65535) / 257)
    else:
        sound = np.isfinite(values)
        if not sound.any():
            raise ValueError("32 bits a pixel, and none of them a finite number")
        low, high = (float(values[sound].min()), float(values[sound].max()))
        if low == high:
            raise ValueError(f"32 bits a pixel, all of them {low:g}: neither black nor white is known")
        wide = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
        grey = np.round((wide - low) / (high - low) * 255)
    grey = grey.astype(np.uint8)
    return 255 - grey if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO else grey
