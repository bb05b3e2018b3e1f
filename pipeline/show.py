"""The terminal: a line per running stage, and tables of what there is to do and of what came out."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pipeline import artifact, lines, progress
from pipeline.errors import ConfigError, PipelineError, Stopped
from pipeline.settings.stages import Pretrain

PLAIN = 10.0
"""Seconds between two lines of a running stage where there is no terminal."""


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]], note: str = "") -> None:
    """Prints a table, with rich where it is installed; for a machine as one line."""
    columns, body = list(columns), [[str(cell) for cell in row] for row in rows]
    if lines.machine():
        lines.say(title, event="table", columns=columns, rows=body, note=note)
        return
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        cells = [columns, *body]
        widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
        print(title)
        for line in cells:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    else:
        drawn = Table(title=title, title_justify="left", title_style="bold")
        for column in columns:
            drawn.add_column(column, overflow="fold")
        for row in body:
            drawn.add_row(*row)
        Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(drawn)
    if note:
        print(note)


# ----------------------------------------------------------------------------------------------------------- display
class Display:
    """What running stages report: a moving line for each on a terminal, else a plain line now and then.

    ``quiet``: says nothing but errors, as ranks other than the first do.
    """

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
                        self.move(name, bar, *report)

    def move(self, name: str, bar: Any, step: int, total: int, text: str) -> None:
        if self.bars is not None:
            self.bars.update(bar, completed=step, total=total, text=text)
            return
        (when, last), now = self.latest[name], time.monotonic()
        if step < last or name not in self.begun:  # packing counts each split anew
            self.begun[name] = now, step
        if step != last and now - when >= PLAIN:
            self.latest[name] = now, step
            since, first = self.begun[name]
            left = (total - step) * (now - since) / (step - first) if first < step < total else None
            facts = {} if left is None else {"seconds_left": round(left)}
            parts = [f"{step} of {total}", *([f"{duration(left)} left"] if left is not None else []), text]
            self.say(", ".join(filter(None, parts)), name, "step", step=step, total=total, **facts)


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


# ------------------------------------------------------------------------------------------------------------- results
def show(runs: str) -> None:
    """Every finished artifact below a folder, and the results of its probes."""
    folder = Path(runs).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"{runs}: no such folder; expected the root of some runs, or one artifact's folder")
    folders = [p.parent for pattern in (artifact.NAME, f"*/{artifact.NAME}") for p in folder.glob(pattern)]
    records = sorted(((artifact.read(path) or {}, path) for path in folders), key=lambda pair: pair[0]["finished"])
    if not records:
        lines.say(f"{runs}: nothing is finished yet")
        return
    facts = ("stage", "kind", "folder", "finished", "seconds")
    rows = [[*({**r, "folder": p.name}[f] for f in facts), some(r["metrics"])] for r, p in records]
    table(runs, [*facts, "metrics"], rows)
    results([path for _, path in records])


def some(metrics: dict[str, Any]) -> str:
    """The plain numbers among metrics, as many as fit a line."""
    numbers = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
    return ", ".join(f"{k} {v:.4g}" for k, v in list(numbers.items())[:6])


def results(folders: Iterable[Path]) -> None:
    """A table for each probe among the folders, with its protocol."""
    for folder in folders:
        record = artifact.read(folder)
        if record and (rows := record["metrics"].get("rows")):
            table(
                f"{record['stage']}  ({folder})",
                ["encoder", "linear", f"linear, {record['settings']['per_class']} a class", "kNN"],
                [[n, percent(row, "linear_top1"), spread(row), percent(row, "knn_top1")] for n, row in rows.items()],
                protocol(record),
            )


def compare(variants: dict[str, list[Path]]) -> None:
    """One table of all variants of a config: what each probe measured of each encoder, and the mean ± sd of it."""
    found: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for mark, folders in variants.items():
        for record in filter(None, map(artifact.read, folders)):
            for name, row in record["metrics"].get("rows", {}).items():
                found.setdefault((record["stage"], name), {})[mark] = row
    keys = ("linear_top1", "linear_few", "knn_top1")
    rows = []
    for (stage, name), by_mark in found.items():
        rows += [[stage, name, mark, *(percent(row, key) for key in keys)] for mark, row in by_mark.items()]
        rows.append([stage, name, f"mean ± sd of {len(by_mark)}", *(over(by_mark.values(), key) for key in keys)])
    if rows:
        columns = ["probe", "encoder", "variant", "linear", "linear, few labels", "kNN"]
        table(f"{len(variants)} variants", columns, rows)


def over(rows: Iterable[dict[str, float]], key: str) -> str:
    values = [100 * row[key] for row in rows if row.get(key) is not None]
    return f"{mean(values):.2f} ± {stdev(values):.2f} %" if len(values) > 1 else "-"


def percent(row: dict[str, float], key: str) -> str:
    return f"{100 * row[key]:.2f} %" if row.get(key) is not None else "-"


def spread(row: dict[str, float]) -> str:
    accuracy = percent(row, "linear_few")
    deviation = row.get("linear_few_sd")
    return accuracy if deviation is None else f"{accuracy[:-2]} ± {100 * deviation:.2f} %"


def protocol(record: dict[str, Any]) -> str:
    """How the numbers were come by: none is shown without it."""
    settings, untrained = record["settings"], record["metrics"].get("protocol", {}).get("untrained", {})
    return (
        f"top-1 on the test split, seed {record['seed']}; {settings['per_class']} labels a class: mean ± sd of "
        f"{settings['draws']} draws; kNN: {settings['neighbours']} neighbours, temperature {settings['temperature']}"
        + "".join(f"; {row}: {what}, untrained" for row, what in untrained.items())
    )


# ------------------------------------------------------------------------------------------------------------- dry run
def dry_run(planned: list[Any], chosen: list[Any]) -> None:
    """What there is to do, what it takes, and every derived number with its formula."""
    packs = {p.name: p for p in planned if "shards" in p.settings.makes}
    data = cache(lambda name: packed(packs[name]))  # of a folder, a reading of all names
    rows, notes = [], []
    for p in chosen:
        state = "done" if p.done else "to do"
        known = training(p, data(p.settings.data)) if isinstance(p.settings, Pretrain) else ("",) * 4
        folder = f"{p.folder.parent / p.name}-… (named after packing)" if p.provisional else p.folder
        rows.append([p.name, p.kind, folder, state, p.place, *known])
        if isinstance(p.settings, Pretrain):
            notes.append(rate(p))
        if hasattr(p.settings, "data"):
            notes += remarks(p, packs[p.settings.data], data)
    table(
        "Nothing is run",
        ["stage", "kind", "folder", "state", "where", "steps", "images an epoch", "parameters", "memory a process"],
        rows,
        "\n".join(notes),
    )


def packed(pack: Any) -> Any:
    from pipeline import estimate

    return estimate.packed(pack.settings, pack.seed, pack.folder)


def training(p: Any, data: Any) -> tuple[str, str, str, str]:
    """Steps, images an epoch, parameters and memory of a training on ``data`` (see `estimate.packed`), each as far as
    it is known before packing."""
    from pipeline import estimate

    later = "after packing"
    steps = p.settings.total_steps(data.images) if data else p.settings.steps
    images = p.settings.steps_per_epoch(data.images) * p.settings.batch if data else None
    made = estimate.build(p.settings, data, p.seed)
    if made is None:
        return str(steps or later), str(images or later), later, later
    size = estimate.memory(p.settings, *made)
    count = f"{estimate.parameters(made[0]):,}"
    return str(steps or later), str(images or later), count, f"~ {size / 2**20:,.0f} MB"


def remarks(p: Any, pack: Any, data: Callable[[str], Any]) -> list[str]:
    """What is said of a stage before it starts, as far as its images are known. Raises as `advice.stage`."""
    from pipeline import advice

    notes: list[str] = []
    if p.done:
        return notes
    if (pack.folder / "manifest.json").exists():
        notes = advice.stage(p.name, p.settings, pack.folder)
    elif isinstance(p.settings, Pretrain) and (known := data(pack.name)) is not None:
        notes = advice.training(p.name, p.settings, known.images, known.side)
    return [f"{p.name}: {text}" for text in notes]


def rate(p: Any) -> str:
    """The learning rate after warm-up, and what it was computed from."""
    optimiser, batch = p.settings.optimiser, p.settings.batch
    text = f"{p.name}: learning rate {p.settings.peak_lr():.6g}"
    reference = optimiser.reference_batch
    return f"{text} = lr {optimiser.lr:g} x batch {batch} / reference_batch {reference}" if reference else text
