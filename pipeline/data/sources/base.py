"""What every source of images is made of."""

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data import layout
from pipeline.settings.stages import Pack

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Item:
    """One image to pack. ``name``: what the user knows it by; ``split``: train, test, or none where the source has no
    splits; ``label``: its class's index, -1 without; ``load``: its file's bytes."""

    name: str
    split: str | None
    label: int
    load: Callable[[], bytes]


@dataclass(frozen=True)
class Listing:
    """What a source holds, in a stable order. ``notes``: what is to be said of it. ``parts``: where each split comes
    from, if there are any; ``unsplit``: why there are none. ``left_out``: names by reason. ``fixed``: no image will
    ever come or go."""

    items: list[Item]
    classes: list[str] | None
    notes: list[str] = field(default_factory=list)
    parts: dict[str, str] = field(default_factory=dict)
    unsplit: str = ""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    fixed: bool = False

    def lines(self) -> list[str]:
        """What was left out and what else is to be known, a line each."""
        return [*filter(None, [layout.sentence(self.left_out)]), *map(layout.shown, self.notes)]


class Source(ABC):
    """A source of images. ``where``: what follows the colon in the config; ``root``: where runs are kept."""

    def __init__(self, where: str, settings: Pack, root: Path | None = None):
        self.where, self.settings, self.root = where, settings, root

    def problem(self) -> str:
        """What is wrong with ``where``, as far as a look at names tells; empty: nothing."""
        return ""

    def fingerprint(self) -> dict[str, str]:
        """What is known of the data without reading an image, for the artifact's key: here its name, since a library
        checks the content. Raises DataError where it cannot be packed."""
        return {"name": self.settings.source}

    @abstractmethod
    def listing(self) -> Listing:
        """What is to be packed. Raises DataError."""


def digest(facts: Iterable[tuple[Any, ...]]) -> str:
    """SHA-256 over what is known of files, a tuple each, in their order."""
    sha = hashlib.sha256()
    for fact in facts:
        sha.update("\0".join(map(str, fact)).encode("utf-8", "surrogateescape") + b"\n")
    return sha.hexdigest()


def png(pixels: "np.ndarray") -> bytes:
    """uint8 [H, W] or [H, W, 3] -> the bytes of a PNG."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()
