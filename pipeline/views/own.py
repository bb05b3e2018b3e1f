"""Views by a class of a user's own file."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pipeline import keyed
from pipeline.image import Image
from pipeline.settings import data as settings
from pipeline.tensors import send


@dataclass(frozen=True)
class Draws:
    """The random numbers of a view of some images: each image's depend on (seed, epoch, image, view, operation) alone,
    whatever other images, ranks and workers there are."""

    seed: int
    epoch: int
    ids: np.ndarray
    view: str
    device: torch.device

    def uniform(self, op: str, *shape: int) -> Tensor:
        """Numbers in [0, 1), float32 [B, *shape]. ``op``: their name; each name has numbers of its own."""
        return self._shaped(keyed.uniform_of(self._keys(op), math.prod(shape)), shape)

    def normal(self, op: str, *shape: int) -> Tensor:
        """Standard normal numbers, float32 [B, *shape]."""
        return self._shaped(keyed.normal_of(self._keys(op), math.prod(shape)), shape)

    def _keys(self, op: str) -> np.ndarray:
        return keyed.key(self.seed, self.epoch, self.ids, self.view, op)

    def _shaped(self, numbers: np.ndarray, shape: tuple[int, ...]) -> Tensor:
        return send(numbers, self.device).float().reshape(len(self.ids), *shape)


class View(ABC):
    """A random view of images, of a user's own file. Its constructor takes (settings, image)."""

    Settings: ClassVar[type[settings.View]]

    def __init__(self, settings: Any, image: Image):
        self.settings, self.image = settings, image

    @abstractmethod
    def view(self, images: Tensor, draws: Draws) -> Tensor:
        """Images in [0, 1], float32 [B, C, S, S] -> a view of each, the same. It draws by ``draws`` alone."""
