"""The page of a config: the folder where what its runs came to is looked at, in TensorBoard and as a report."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

PAGES = "pages"


def folder(root: Path, name: str, keys: Iterable[str]) -> Path:
    """root/pages/<name>-<8 hex digits>. ``name``: the config's; ``keys``: of every stage in every variant of it, in
    any order and however often, so that another setting has another page."""
    digest = hashlib.sha256("\n".join(sorted(set(keys))).encode()).hexdigest()
    return root / PAGES / f"{name}-{digest[:8]}"
