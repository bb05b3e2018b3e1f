"""folder:PATH: image files below a folder."""

from functools import partial
from pathlib import Path
from typing import Any

from pipeline.data import layout
from pipeline.data.sources.base import Item, Listing, Source, digest
from pipeline.hints import sibling
from pipeline.settings.stages import Pack


class ImageFolder(Source):
    """The images of a folder, whose splits and classes `layout.read` finds."""

    @classmethod
    def at(cls, path: Path, **settings: Any) -> "ImageFolder":
        """The source of a folder that no config names. ``settings``: a pack's ``splits`` and ``classes``."""
        return cls(str(path), Pack.model_construct(source=f"folder:{path}", **settings))

    @property
    def layout(self) -> layout.Layout:
        return layout.read(Path(self.where), self.root, self.settings.splits, self.settings.classes)

    def problem(self) -> str:
        path = Path(self.where)
        if path.is_dir():
            return ""
        return f"{path}: {'is a file, not a folder' if path.is_file() else 'no such folder'}{sibling(path)}"

    def fingerprint(self) -> dict[str, str]:
        """A hash of the names, classes, splits, sizes and modification times of the images that would be packed."""
        return {"files": digest(self.layout.facts())}

    def listing(self) -> Listing:
        folder = self.layout
        items = [Item(e.file.name, e.split, e.label, partial(file_bytes, e.file.path)) for e in folder.entries]
        return Listing(items, folder.classes, folder.notes, folder.parts, "no folder was a split", folder.left_out)


def file_bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
