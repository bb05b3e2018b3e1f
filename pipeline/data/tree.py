"""Walks a folder once and lists its images, its text files, and what it left out, by reason.

Links to folders are followed, but no real folder is entered twice on one path, so that links cannot form a loop. Left
out are hidden names, files that operating systems create, folders that may not be read, and runs of this program.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pipeline.data.formats import IMAGES, extension
from pipeline.errors import DataError

SKIPPED = {"__MACOSX", "Thumbs.db", "desktop.ini", "lost+found", "@eaDir", "$RECYCLE.BIN", "System Volume Information"}
RECORDS = {"artifact.json", "begun.json"}
"""Files by which the folder of a stage is recognised, so that it is not taken for a class."""
TABLES = {"txt", "csv", "tsv"}


class File(NamedTuple):
    """A file: its path relative to the folder, as parts; its path; its size in bytes; its modification time in ns."""

    parts: tuple[str, ...]
    path: str
    size: int
    mtime: int

    @property
    def name(self) -> str:
        return "/".join(self.parts)


@dataclass
class Tree:
    """What a folder holds. ``images``: sorted by name; ``tables``: text files that may hold labels; ``folders``: all
    folders that were entered; ``left_out``: names of what was left out, by reason."""

    path: Path
    images: list[File] = field(default_factory=list)
    tables: list[File] = field(default_factory=list)
    folders: list[tuple[str, ...]] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave(self, reason: str, name: str) -> None:
        self.left_out.setdefault(reason, []).append(name)


def walk(path: Path, root: Path | None = None) -> Tree:
    """Lists everything below a folder. ``root``: the folder of runs, left out if it lies inside. Raises DataError
    where the folder does not exist or may not be read."""
    if not path.is_dir():
        raise DataError(f"folder:{path}: there is no such folder")
    runs = os.path.realpath(root) if root else ""
    tree = Tree(path)
    folders: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = [(str(path), (), ())]
    while folders:
        folder, parts, above = folders.pop()
        name = "/".join(parts)
        real = os.path.realpath(folder)
        if real in above:
            tree.leave("links back to a folder above", name)
            continue
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            if not parts:
                raise DataError(f"folder:{path}: {error.strerror}; it cannot be read") from None
            tree.leave("folders that cannot be read", name)
            continue
        if parts and (real == runs or any(entry.name in RECORDS for entry in entries)):
            tree.leave("run folders", name)
            continue
        tree.folders.append(parts)
        inner = []
        for entry in entries:
            below = (*parts, entry.name)
            if entry.name.startswith(".") or entry.name in SKIPPED:
                tree.leave("hidden or a system's own", "/".join(below))
                continue
            try:
                if entry.is_dir():
                    inner.append((entry.path, below, (*above, real)))
                elif entry.is_file():
                    note(tree, below, entry)
                else:
                    tree.leave("broken links" if entry.is_symlink() else "no regular files", "/".join(below))
            except OSError:
                tree.leave("broken links" if entry.is_symlink() else "files that cannot be read", "/".join(below))
        folders += reversed(inner)
    tree.images.sort()
    tree.tables.sort()
    return tree


def note(tree: Tree, parts: tuple[str, ...], entry: os.DirEntry) -> None:
    ext = extension(entry.name)
    into = tree.images if ext in IMAGES else tree.tables
    if ext not in IMAGES:
        tree.leave(f".{ext} files" if ext else "files without extension", "/".join(parts))
        if ext not in TABLES:
            return
    facts = entry.stat()
    into.append(File(parts, entry.path, facts.st_size, facts.st_mtime_ns))
