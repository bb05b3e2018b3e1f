"""Suggestions in messages about an unknown name or a missing file."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def nearest(name: Any, known: Iterable[str], listed: str = "expected one of") -> str:
    """ "; did you mean "x"?", or the list of known names where none is similar."""
    names = [str(k) for k in known]
    lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(str(name).lower(), lower, 1, 0.6)
    if close:
        return f'; did you mean "{lower[close[0]]}"?'
    return f"; {listed} {', '.join(names)}" if names else ""


def sibling(path: Path) -> str:
    """The nearest name to the first part of a path that is not there."""
    while not path.parent.is_dir() and path.parent != path:
        path = path.parent
    if not path.parent.is_dir():
        return ""
    close = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], 1, 0.5)
    return f'; did you mean "{path.parent / close[0]}"?' if close else f"; {path.parent} has no {path.name}"
