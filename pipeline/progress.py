"""How far a running stage is: one tiny file in its folder, which whoever watches reads.

A file, since the stage may run in another process or on another machine than the one that shows it.
"""

import json
from pathlib import Path

from pipeline import files

NAME = "progress.json"


def report(out: Path, step: int, total: int, text: str = "") -> None:
    """Says that ``step`` of ``total`` is done; ``text``: a few words, such as the loss. Whole or not at all."""
    files.write_json(out / NAME, {"step": step, "total": total, "text": text}, durable=False)


def read(out: Path) -> tuple[int, int, str] | None:
    """(step, total, text) as last reported, or None."""
    try:
        body = json.loads((out / NAME).read_text())
        return int(body["step"]), int(body["total"]), str(body["text"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def clear(out: Path) -> None:
    """Forgets: a finished artifact has no progress."""
    (out / NAME).unlink(missing_ok=True)
    for part in out.glob(f".{NAME}.*"):
        part.unlink(missing_ok=True)
