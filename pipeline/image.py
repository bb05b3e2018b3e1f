"""What an image of a packed set is, in six numbers that every layer needs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Image:
    """Channels (1 or 3), side in pixels of a square view, and the pixel statistics of the training split in [0, 1]."""

    channels: int
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
