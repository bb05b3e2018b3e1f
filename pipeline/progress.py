"""The progress of a running stage: a small file in its folder, from which the display reads it.

A file, since the stage may run in another process or on another machine than the one that shows it.
"""

import json
from pathlib import Path
from typing import NamedTuple

from pipeline import files

NAME = "progress.json"


class Progress(NamedTuple):
    """``step`` of ``total`` ``unit`` is done; ``text``: a few words; ``numbers``: such as the loss, by name."""

    step: int
    total: int
    unit: str
    text: str
    numbers: dict[str, float]


def report(out: Path, step: int, total: int, unit: str = "steps", text: str = "", **numbers: float | None) -> None:
    """Says how far a stage is (see `Progress`); numbers that are None are left out. Whole or not at all."""
    known = {name: value for name, value in numbers.items() if value is not None}
    files.write_json(out / NAME, Progress(step, total, unit, text, known)._asdict(), durable=False)


def read(out: Path) -> Progress | None:
    """What was last reported, or None."""
    try:
        body = json.loads((out / NAME).read_text())
        numbers = {str(name): float(value) for name, value in body["numbers"].items()}
        return Progress(int(body["step"]), int(body["total"]), str(body["unit"]), str(body["text"]), numbers)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def clear(out: Path) -> None:
    """Removes the file; a finished artifact has none."""
    (out / NAME).unlink(missing_ok=True)
    for part in out.glob(f".{NAME}.*"):
        part.unlink(missing_ok=True)
