"""The lines that a command says: words for people or, with PIPELINE_LOG=json, one JSON object each for machines."""

import json
import os
import sys
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TextIO


def machine() -> bool:
    """Whether lines are read by a machine."""
    return os.environ.get("PIPELINE_LOG") == "json"


def say(text: str, stage: str = "", event: str = "said", file: TextIO | None = None, **facts: Any) -> None:
    """One line, on stdout or ``file``, at once. As JSON: time (UTC), event, stage, text and the ``facts``."""
    if machine():
        body = {"time": datetime.now(UTC).isoformat(), "event": event, "stage": stage, "text": text}
        line = json.dumps(body | facts)
    else:
        line = f"{stage}: {text}" if stage else text
    with suppress(OSError):  # a log on a full disk: no reason to end what the line tells of
        print(line, file=file or sys.stdout, flush=True)


def legible(name: str) -> str:
    """A name that any file and terminal takes: bytes of it that are no UTF-8 are written as \\\\xe9."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
