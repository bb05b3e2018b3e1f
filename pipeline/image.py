"""The shape and statistics of the images of a packed set, which every layer needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # settings and errors are told without torch
    from torch import Tensor


@dataclass(frozen=True)
class Image:
    """Channels (1 or 3), side in pixels of a square view, the pixel statistics of the training split in [0, 1], and
    whether files are turned as their EXIF orientation says. ``cropped``: the packed images are of another size, and
    evaluated by their centre."""

    channels: int
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    exif_orientation: bool = True
    cropped: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of a view, [C, H, W]."""
        return self.channels, self.side, self.side

    def normalise(self, x: Tensor) -> Tensor:
        """Pixels in [0, 1], float [..., C, H, W] -> (x - mean) / std of each channel."""
        mean, std = self._statistics(x)
        return (x - mean) / std

    def denormalise(self, x: Tensor) -> Tensor:
        """The inverse of `normalise`: x std + mean."""
        mean, std = self._statistics(x)
        return x * std + mean

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return like.new_tensor(self.mean).view(-1, 1, 1), like.new_tensor(self.std).view(-1, 1, 1)
