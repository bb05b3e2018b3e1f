"""Names of many files in one word, as a shell would write them."""

import glob
import os
from pathlib import Path


def tars(pattern: str) -> list[Path]:
    """Files that a pattern with * ? [..] and {000..012} or {a,b} names, in order of name."""
    return sorted(Path(p) for one in braces(os.path.expanduser(pattern)) for p in glob.glob(one))


def braces(pattern: str) -> list[str]:
    """The shell's brace expansion: "x-{00..02}.tar" -> three names, "{a,b}" -> two."""
    before, opened, rest = pattern.partition("{")
    inside, closed, after = rest.partition("}")
    if not (opened and closed):
        return [pattern]
    first, dots, last = inside.partition("..")
    if dots and first.isdigit() and last.isdigit():
        choices = [f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)]
    else:
        choices = inside.split(",")
    return [before + choice + end for choice in choices for end in braces(after)]


def missing(pattern: str) -> list[str]:
    """Files that a pattern names without a wildcard, and that are not there."""
    names = braces(os.path.expanduser(pattern))
    return [name for name in names if not glob.has_magic(name) and not os.path.exists(name)]
