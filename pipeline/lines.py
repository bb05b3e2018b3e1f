"""The lines that a command says: words for people or, with PIPELINE_LOG=json, one JSON object each for machines."""

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TextIO


def machine() -> bool:
    """Whether lines are printed as JSON."""
    return os.environ.get("PIPELINE_LOG") == "json"


def say(text: str, stage: str = "", event: str = "said", file: TextIO | None = None, **facts: Any) -> None:
    """One line, on stdout or ``file``, at once. As JSON: time (UTC), event, stage, text and the ``facts``."""
    if machine():
        body = {"time": datetime.now(UTC).isoformat(), "event": event, "stage": stage, "text": text}
        line = json.dumps(body | facts)
    else:
        line = f"{stage}: {text}" if stage else text
    with suppress(OSError):  # a log on a full disk must not end the work
        print(line, file=file or sys.stdout, flush=True)


def numbers(values: Mapping[str, float]) -> str:
    """"loss 3.02, directions 41" or, of names that end in %, "moco 95.4 %"."""
    return ", ".join(
        f"{name[:-2]} {value:.1f} %" if name.endswith(" %")
        else f"{name} {value:,.0f}" if 1000 <= abs(value) < 1e15
        else f"{name} {value:.4g}"
        for name, value in values.items()
    )  # fmt: skip


def size(count: int) -> str:
    """A number of bytes in kB, MB or GB."""
    unit, power = next((u, p) for u, p in (("kB", 10), ("MB", 20), ("GB", 30)) if count < 1000 << p or u == "GB")
    return f"{count / (1 << power):,.{int(count < 10 << power)}f} {unit}"


def legible(name: str) -> str:
    """A name that any file and terminal takes: bytes of it that are no UTF-8 are written as \\\\xe9."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
