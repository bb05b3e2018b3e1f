"""The interface of a source of images."""

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
    """One image to pack. ``name``: its name in the source; ``split``: "train", "test", or None where the source has no
    splits; ``label``: its class's index (-1: none); ``load``: reads its file's bytes."""

    name: str
    split: str | None
    label: int
    load: Callable[[], bytes]


@dataclass(frozen=True)
class Listing:
    """The images of a source in a stable order. ``notes``: lines for the user. ``parts``: where each split comes from,
    if the source has splits; ``unsplit``: why it has none. ``left_out``: names of what is not packed, by reason.
    ``fixed``: the set never changes."""

    items: list[Item]
    classes: list[str] | None
    notes: list[str] = field(default_factory=list)
    parts: dict[str, str] = field(default_factory=dict)
    unsplit: str = ""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    fixed: bool = False

    def lines(self) -> list[str]:
        """Lines for the user: what was left out, and the notes."""
        return [*filter(None, [layout.sentence(self.left_out)]), *map(layout.shown, self.notes)]


class Source(ABC):
    """A source of images. ``where``: the text after the colon in the config; ``root``: the folder of runs."""

    def __init__(self, where: str, settings: Pack, root: Path | None = None):
        self.where, self.settings, self.root = where, settings, root

    def problem(self) -> str:
        """What is wrong with ``where``, as far as names of files tell; empty if nothing is."""
        return ""

    def fingerprint(self) -> dict[str, str]:
        """What identifies the data in the artifact's key, known without reading an image. By default the source's
        name, for sets that a library verifies. Raises DataError where it cannot be packed."""
        return {"name": self.settings.source}

    @abstractmethod
    def listing(self) -> Listing:
        """The images to pack. Raises DataError where they cannot be listed."""


def digest(facts: Iterable[tuple[Any, ...]]) -> str:
    """SHA-256 of one tuple for each file, in their order."""
    sha = hashlib.sha256()
    for fact in facts:
        sha.update("\0".join(map(str, fact)).encode("utf-8", "surrogateescape") + b"\n")
    return sha.hexdigest()


def png(pixels: "np.ndarray") -> bytes:
    """Encodes pixels, uint8 [H, W] or [H, W, 3], as a PNG."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()
