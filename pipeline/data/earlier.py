"""Compares a pack with the one made before it by the same stage: which images are new, gone or in another split.
Shards that are equal in both are stored once, by hard links."""

import json
import os
from contextlib import suppress
from pathlib import Path

from pipeline import files
from pipeline.data.shards import MANIFEST, NAMES, Shards
from pipeline.errors import DataError


def earlier(out: Path) -> Path | None:
    """The latest other folder of the same stage that holds a finished pack with its images' names, or None."""
    stage = out.name.rpartition("-")[0]
    manifests = [p for p in out.parent.glob(f"{stage}-*/{MANIFEST}") if stage and p.parent.resolve() != out.resolve()]
    for path in sorted(manifests, key=lambda p: p.stat().st_mtime_ns, reverse=True):
        if path.parent.name.rpartition("-")[0] == stage and list(path.parent.glob(f"*{NAMES}")):
            return path.parent
    return None


def splits(folder: Path) -> dict[str, str]:
    """The split of each image by name, as it was packed."""
    return {
        json.loads(line): path.name.removesuffix(NAMES)
        for path in sorted(folder.glob(f"*{NAMES}"))
        for line in path.read_bytes().splitlines()
    }


def changes(before: Path, out: Path) -> str:
    """A line that counts the images which are new, gone or in another split; empty where the two packs have no image
    in common."""
    old, new = splits(before), splits(out)
    both = old.keys() & new.keys()
    if not both:
        return ""
    moved = sum(old[name] != new[name] for name in both)
    text = f"{len(new) - len(both):,} images new, {len(old) - len(both):,} gone, {moved:,} moved to another split"
    return f"since {before}: {text}"


def share(before: Path, out: Path) -> int:
    """Replaces shards of ``out`` that are equal in ``before`` by hard links, where the file system has them. Returns
    how many."""
    linked = 0
    with suppress(DataError, OSError):
        for split in Shards.open(out).manifest["splits"]:
            ours, theirs = Shards.open(out, split), Shards.open(before, split)
            known = {theirs.name(k): row["sha256"].tobytes() for k, row in enumerate(theirs.shards)}
            for k, row in enumerate(ours.shards):
                name = ours.name(k)
                if known.get(name) == row["sha256"].tobytes() and not (out / name).samefile(before / name):
                    with files.replacing(out / name) as part:
                        os.link(before / name, part)
                    linked += 1
    return linked
