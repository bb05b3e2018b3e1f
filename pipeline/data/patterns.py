"""Patterns for the names of many files, as in a shell: wildcards and brace expansion."""

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path


def tars(pattern: str) -> list[Path]:
    """The files that match a pattern with * ? [..] and {000..012} or {a,b}, sorted by name.

    A backslash escapes the letter after it. Brackets that are part of the name of an existing file or folder are
    taken literally.
    """
    paths = {Path(p) for wildcard, _ in names(pattern) for p in glob.glob(wildcard)}
    return sorted(path for path in paths if path.is_file())


def missing(pattern: str) -> list[str]:
    """Files that a pattern names without a wildcard and that do not exist."""
    return [name for _, name in names(pattern) if name and not os.path.exists(name)]


def names(pattern: str) -> Iterator[tuple[str, str]]:
    """For each name of the brace expansion: the pattern for `glob`, and the literal name ("" if it has a wildcard)."""
    shielded = re.sub(r"\\(.)", lambda m: f"\0{ord(m[1])}\0", os.path.expanduser(pattern))
    for name in braces(shielded):
        taken, there, wild = [], [], False
        for part in name.split("/"):
            literal = re.sub("\0(\\d+)\0", lambda m: chr(int(m[1])), part)
            brackets = not set("*?") & set(part)
            there.append(literal)
            if brackets and (not glob.has_magic(part) or os.path.exists("/".join(there))):
                taken.append(glob.escape(literal))
            else:
                taken.append(re.sub("\0(\\d+)\0", lambda m: glob.escape(chr(int(m[1]))), part))
                wild = True
        yield "/".join(taken), "" if wild else "/".join(there)


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


def unmatched(pattern: str) -> str:
    """Says why a pattern matches no file."""
    folder = os.path.expanduser(pattern)
    if os.path.isdir(folder):
        inside = f"{escaped(folder.rstrip('/'))}/*.tar"
        there = len(tars(inside))
        return f'{pattern} is a folder; name its tars: "{inside}" ({there} there)' if there else (
            f"{pattern} is a folder, and no tars lie in it"
        )  # fmt: skip
    brackets = "; where a bracket is part of a name, write a backslash before it" if "[" in pattern else ""
    return f"no file matches {pattern}{brackets}"


def escaped(name: str) -> str:
    """The pattern that matches only this name."""
    return re.sub(r"([*?\[\]{}\\])", r"\\\1", name)
