"""What an image of a packed set is: the few facts that every layer needs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Image:
    """Channels (1 or 3), side in pixels of a square view, the pixel statistics of the training split in [0, 1], and
    whether files are turned as their EXIF orientation says. ``cropped``: the packed images are of another size, and
    judged by their centre."""

    channels: int
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    exif_orientation: bool = True
    cropped: bool = False
