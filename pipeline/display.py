"""What running stages report: a moving line for each on a terminal, else a plain line now and then."""

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pipeline import lines, progress
from pipeline.errors import PipelineError, Stopped
from pipeline.progress import Progress

PLAIN = 10.0
"""Seconds between two lines of a running stage where there is no terminal."""


class Display:
    """What running stages report. ``quiet``: says nothing but errors, as ranks other than the first do."""

    def __init__(self, quiet: bool = False):
        self.quiet = quiet
        self.running: dict[str, tuple[Path, Any]] = {}
        self.latest: dict[str, tuple[float, int]] = {}
        self.begun: dict[str, tuple[float, int]] = {}
        """When a stage's first step was seen, and which that was: one that goes on does not begin at 0."""
        self.bars = None if quiet or lines.machine() or not sys.stdout.isatty() else bars()
        self.lock, self.over = threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self.poll, daemon=True)

    def __enter__(self) -> "Display":
        if self.bars is not None:
            self.bars.start()
        if not self.quiet:
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        if self.thread.is_alive():
            self.thread.join()
        if self.bars is not None:
            self.bars.stop()

    def say(self, text: str, stage: str = "", event: str = "said", **facts: Any) -> None:
        if not self.quiet:
            lines.say(text, stage, event, **facts)

    def fail(self, error: PipelineError) -> None:
        """An error, once: all ranks stop together, but each may fail in its own way."""
        event = "stopped" if isinstance(error, Stopped) else "failed"
        if not self.quiet:
            lines.say(str(error), event=event, file=sys.stderr, code=error.code)
        elif event == "failed":
            lines.say(f"rank {os.environ.get('RANK')}: {error}", event=event, file=sys.stderr, code=error.code)

    def add(self, name: str, out: Path) -> None:
        with self.lock:
            bar = None if self.bars is None else self.bars.add_task(name, total=None, text="")
            self.running[name], self.latest[name] = (out, bar), (time.monotonic(), -1)
            self.begun.pop(name, None)
        if self.bars is None:
            self.say("starts", name, "starts")

    def remove(self, name: str) -> None:
        with self.lock:
            _, bar = self.running.pop(name, (None, None))
            if self.bars is not None and bar is not None:
                self.bars.remove_task(bar)

    def poll(self) -> None:
        while not self.over.wait(0.5):
            with self.lock:
                for name, (out, bar) in self.running.items():
                    report = progress.read(out)
                    if report is not None:
                        self.move(name, bar, report)

    def move(self, name: str, bar: Any, report: Progress) -> None:
        step, (when, last), now = report.step, self.latest[name], time.monotonic()
        if step < last or name not in self.begun:  # packing counts each split anew
            self.begun[name] = now, step
        since, first = self.begun[name]
        rate = (step - first) / (now - since) if step > first else None
        if self.bars is not None:
            self.latest[name] = now, step
            self.bars.update(bar, completed=step, total=report.total, text=words(report, rate))
        elif step != last and now - when >= PLAIN:
            self.latest[name] = now, step
            left = (report.total - step) / rate if rate and step < report.total else None
            facts = {"seconds_left": left and round(left), f"{report.unit}_per_s": rate} | report.numbers
            known = {key: value for key, value in facts.items() if value is not None}
            text = f"{step} of {report.total} {report.unit}, {words(report, rate, left)}".removesuffix(", ")
            self.say(text, name, "step", step=step, total=report.total, **known)


def words(report: Progress, rate: float | None, left: float | None = None) -> str:
    """How fast a stage is, the seconds it still takes, and what it says of itself. ``rate``: its units a second."""
    images = report.numbers.get("images_per_s")
    speed = pace(rate, report.unit) if images is None else pace(images, "images")
    numbers = {name: value for name, value in report.numbers.items() if not name.endswith("_per_s")}
    until = "" if left is None else f"{duration(left)} left"
    return ", ".join(filter(None, [speed, until, lines.numbers(numbers), report.text]))


def pace(rate: float | None, unit: str) -> str:
    """"453 images/s", "2.5 steps/s" or "8.2 encoders/min"; empty where the rate is not known."""
    if not rate:
        return ""
    return f"{60 * rate:.1f} {unit}/min" if rate < 1 else f"{rate:,.{int(rate < 10)}f} {unit}/s"


def duration(seconds: float) -> str:
    """"40 s", "12 min", "3 h 05 min" or "2 d 4 h"."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def bars() -> Any:
    """rich's progress, or None where rich is not installed."""
    try:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        return None
    name, text = TextColumn("{task.description}"), TextColumn("{task.fields[text]}")
    return Progress(name, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), text, transient=True)
