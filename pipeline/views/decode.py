"""Decodes image files strictly: a file that cannot be read completely raises ValueError, whose text is logged with the
sample."""

import io
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

try:
    import simplejpeg
except ImportError:  # Pillow then decodes to the same pixels, but accepts a scan with flipped bits
    simplejpeg: Any = None

MOST_PIXELS = 178_956_970
"""The number of pixels above which Pillow raises DecompressionBombError; the header is checked before decoding."""
LEAST_SIDE = 8
"""Pixels of the shortest side allowed; a smaller image is a broken thumbnail or a tracking pixel."""


TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[:, ::-1],
    7: lambda x: x.swapaxes(0, 1)[::-1, ::-1],
    8: lambda x: x.swapaxes(0, 1)[::-1],
}
"""The function that makes an image upright, by its EXIF orientation (1: it is upright)."""
ORIENTATION = 0x0112
BITS, PHOTOMETRIC, SAMPLE_FORMAT, WHITE_IS_ZERO, UNSIGNED = 258, 262, 339, 0, 1
"""Tags of a TIFF file, and two of their values (TIFF 6.0)."""


class TooSmall(ValueError):
    """A side of the image is shorter than LEAST_SIDE."""


class Scratch:
    """A buffer for decoded pixels that one thread reuses, since new memory costs a page fault for each 4 KB."""

    def __init__(self) -> None:
        self.pixels = np.empty(0, np.uint8)

    def room(self, size: int) -> np.ndarray:
        if self.pixels.size < size:
            self.pixels = np.empty(size, np.uint8)
        return self.pixels


def decode(
    data: bytes | memoryview, channels: int, scratch: Scratch | None = None, exif_orientation: bool = True
) -> "Tensor":
    """Decodes as `decode_array` does -> a tensor, uint8 [channels, H, W], whose channels are last in memory."""
    import torch

    return torch.from_numpy(decode_array(data, channels, scratch, exif_orientation)).permute(2, 0, 1)


def decode_array(
    data: bytes | memoryview, channels: int, scratch: Scratch | None = None, exif_orientation: bool = True
) -> np.ndarray:
    """Decodes an image file of any format that Pillow reads -> uint8 [H, W, channels], with 1 or 3 channels. Of
    several frames it takes the first.

    Values of 16 bits are divided by 257. Values of 32 bits have no defined white: as in ImageJ, the smallest finite
    one becomes black and the largest white; an image where all are equal is refused. Transparent pixels are put on
    white. With ``exif_orientation`` the image is turned upright by its EXIF data. The pixels may be in ``scratch``,
    until its next use. Raises ValueError for any fault of the file.
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
    except Exception as error:  # decoders raise RuntimeError, SyntaxError, struct.error, KeyError, ... on damage
        raise ValueError((str(error).splitlines() or [""])[0] or type(error).__name__) from error
    pixels = pixels.reshape(*pixels.shape[:2], channels)
    if exif_orientation and turn in TURNS:
        pixels = np.ascontiguousarray(TURNS[turn](pixels))
    return pixels


def jpeg_orientation(data: bytes | memoryview) -> int:
    """The EXIF orientation in a JPEG's header; 1 where there is none."""
    from PIL import Image

    content = bytes(data)
    scan = content.find(b"\xff\xda")  # a thumbnail's scan comes first only where there are EXIF data
    if not any(name in content[: None if scan < 0 else scan] for name in (b"Exif\0\0", b"tiff:Orientation")):
        return 1  # most files have neither, and opening one with Pillow takes a tenth of the time of decoding it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pop_orientation(Image.open(io.BytesIO(content)))
    except Exception:  # simplejpeg has decoded the image; a header that Pillow cannot read is ignored
        return 1


def pop_orientation(image: Any) -> int:
    """The EXIF orientation of a Pillow image, which is removed from it."""
    try:
        return int(image.getexif().pop(ORIENTATION, 1))
    except Exception:  # the EXIF data are damaged, the pixels need not be
        return 1


def check(height: int, width: int) -> None:
    """Raises TooSmall for an image with too short a side, ValueError for one with too many pixels."""
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width} x {height} pixels are too many")
    if min(width, height) < LEAST_SIDE:
        raise TooSmall(f"{width} x {height} pixels: a side of fewer than {LEAST_SIDE}")


def jpeg(data: bytes | memoryview, channels: int, scratch: Scratch | None) -> np.ndarray | None:
    """Decodes a JPEG with simplejpeg -> uint8 [H, W, channels]. None for those that Pillow decodes: CMYK, and colour
    that is to become grey."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None  # simplejpeg does not know the header; Pillow reads the file, or says what is wrong
    if space not in (("Gray",) if channels == 1 else ("Gray", "YCbCr", "RGB")):
        return None
    check(int(height), int(width))
    buffer = None if scratch is None else scratch.room(height * width * channels)
    return simplejpeg.decode_jpeg(data, "GRAY" if channels == 1 else "RGB", buffer=buffer)


def open_image(data: bytes | memoryview) -> tuple[Any, int]:
    """A Pillow image whose pixels are loaded but not turned, and its EXIF orientation."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            check(image.height, image.width)
            scale_transparency(image, data)
            turn = pop_orientation(image) if image.format == "TIFF" else 0  # Pillow turns a TIFF when it loads it
            image.load()
            turn = turn or pop_orientation(image)  # before load() this would load a PNG, and hide damage
    except UnidentifiedImageError as error:
        raise ValueError("not an image") from error
    return image, turn


def scale_transparency(image: Any, data: bytes | memoryview) -> None:
    """Converts the transparent value of a PNG of fewer than 8 bits, or of RGB of 16 bits, to the 8 bits of the pixels
    that Pillow makes of it."""
    clear = image.info.get("transparency")
    if image.format == "PNG" and clear is not None:
        depth = data[24]
        if image.mode == "L" and depth < 8:
            image.info["transparency"] = clear * 255 // ((1 << depth) - 1)
        if image.mode == "RGB" and depth == 16:
            image.info["transparency"] = tuple(value >> 8 for value in clear)


def to_eight_bits(image: Any, mode: str) -> Any:
    """Converts a Pillow image of any mode to ``mode``, L or RGB. Transparent pixels become white."""
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
    """The values of a grey image of 16 or 32 bits, [H, W], in the type that its file has."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    if tags.get(SAMPLE_FORMAT, (UNSIGNED,))[0] == UNSIGNED and tags.get(BITS, (0,))[0] == 32:
        return values.view(np.uint32)  # Pillow has no unsigned mode of 32 bits, and reads them as signed
    return values


def levels(values: np.ndarray, image: Any) -> np.ndarray:
    """Scales the values of a grey image of 16 or 32 bits to uint8 [H, W], as `decode` describes. Raises ValueError
    where no scale is known."""
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
