"""The terminal: tables of what there is to do and of what came out."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pipeline import artifact, lines, runs
from pipeline.settings.nets import trunk_of
from pipeline.settings.stages import Pretrain


class Share(float):
    """A share of 1, said in percent."""

    def __str__(self) -> str:
        return f"{100 * self:.2f} %"


class Spread(dict[str, float]):
    """Shares' ``mean``, and their standard deviation ``sd`` where there is one, said in percent."""

    def __init__(self, mean: float, sd: float | None):
        super().__init__({"mean": mean} | ({} if sd is None else {"sd": sd}))

    def __str__(self) -> str:
        return " ± ".join(f"{100 * share:.2f}" for share in self.values()) + " %"


class Count(int):
    """A large number, said with its thousands apart."""

    def __str__(self) -> str:
        return f"{int(self):,}"


class Bytes(int):
    """A size, said in MB or GB."""

    def __str__(self) -> str:
        return lines.size(self)


def table(
    title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]], note: str = "", dense: bool = False
) -> None:
    """Prints a table, with rich where it is installed; for a machine as one line, whose numbers are numbers.
    ``dense``: with no lines between columns."""
    columns, cells = list(columns), [list(row) for row in rows]
    if lines.machine():
        lines.say(title, event="table", columns=columns, rows=[list(map(plain, row)) for row in cells], note=note)
        return
    body = [["-" if cell is None else str(cell) for cell in row] for row in cells]
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        cells = [columns, *body]
        widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
        print(title)
        for line in cells:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    else:
        style = {"box": box.SIMPLE_HEAD, "pad_edge": False, "padding": (0, 1, 0, 0)} if dense else {}
        drawn = Table(title=title, title_justify="left", title_style="bold", **style)
        for column in columns:
            drawn.add_column(column, overflow="fold")
        for row in body:
            drawn.add_row(*row)
        Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160, highlight=False).print(drawn)
    if note:
        print(note)


def plain(cell: Any) -> Any:
    """A cell as JSON has it: numbers and what holds them as they are, all else as text."""
    return cell if cell is None or isinstance(cell, int | float | dict) else str(cell)


# ------------------------------------------------------------------------------------------------------------- results
def results(folders: Iterable[Path]) -> None:
    """A table for each probe among the folders, with its protocol."""
    for folder in folders:
        record = artifact.read(folder)
        if record and (rows := record["metrics"].get("rows")):
            columns = ["encoder", "linear", f"linear, {record['settings']['per_class']} a class", "kNN"]
            body = [[name, *accuracies(row)] for name, row in rows.items()]
            table(f"{record['stage']}  ({folder})", columns, body, protocol(record))


def accuracies(row: dict[str, float]) -> tuple[Share | None, Spread, Share | None]:
    """Of all labels, of a few, and of neighbours."""
    few = Spread(row["linear_few"], row.get("linear_few_sd"))
    return share(row, "linear_top1"), few, share(row, "knn_top1")


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
        rows += [[stage, name, mark, *(share(row, key) for key in keys)] for mark, row in by_mark.items()]
        rows.append([stage, name, f"mean ± sd of {len(by_mark)}", *(over(by_mark.values(), key) for key in keys)])
    if rows:
        columns = ["probe", "encoder", "variant", "linear", "linear, few labels", "kNN"]
        table(f"{len(variants)} variants", columns, rows)


def over(rows: Iterable[dict[str, float]], key: str) -> Spread | None:
    values = [row[key] for row in rows if row.get(key) is not None]
    return Spread(mean(values), stdev(values)) if len(values) > 1 else None


def share(row: dict[str, float], key: str) -> Share | None:
    return None if row.get(key) is None else Share(row[key])


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
    packs = {p.name: p for p in planned if p.packs}
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


def training(p: Any, data: Any) -> tuple[Any, Any, Any, Any]:
    """Steps, images an epoch, parameters and memory of a training on ``data`` (see `estimate.packed`), each as far as
    it is known before packing."""
    from pipeline import estimate

    later = "after packing"
    steps = p.settings.total_steps(data.images) if data else p.settings.steps
    images = p.settings.steps_per_epoch(data.images) * p.settings.batch if data else None
    made = estimate.build(p.settings, data, p.seed)
    if made is None:
        return steps or later, images or later, later, later
    size = Bytes(estimate.memory(p.settings, *made))
    return steps or later, images or later, Count(estimate.parameters(made[0])), size


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
    return [f"{p.name}: {text}" for text in [*notes, *from_zero(p)]]


def from_zero(p: Any) -> Iterator[str]:
    """A line about a training that starts from zero although one of its name is there with other settings: which, and
    how to go on from it."""
    if not isinstance(p.settings, Pretrain) or getattr(trunk_of(p.settings.net), "init", None):
        return
    others = [run for folder in p.folder.parent.glob(f"{p.name}-*") if (run := runs.read_one(folder))]
    own = [run for run in others if run.record.get("key") == p.key]
    alike = [run for run in others if run.record.get("kind") == p.kind and run.record.get("settings")]
    if own or not alike:
        return
    last = max(alike, key=lambda run: (run.done, run.moment))
    before = runs.own(last)
    now = dict(runs.flat(p.settings.model_dump(mode="json", exclude={"place", "seed", *p.settings.housekeeping()})))
    common = now.keys() & before.keys()
    changes = [f"{name} {now[name]}, there {before[name]}" for name in sorted(common) if now[name] != before[name]]
    if not changes and p.provisional:
        return  # its key, and so whether it is done, is known after packing
    text = f"starts from zero: {last.folder}, which is {last.state}, is another training"
    text += f" ({'; '.join(changes)})" if changes else ", of other images or by other code"
    if last.done and not any(change.startswith("net.") for change in changes):
        text += f"; to go on from its network: {p.name}.net.init=artifact:{last.folder}"
    yield text


def rate(p: Any) -> str:
    """The learning rate after warm-up, and what it was computed from."""
    optimiser, batch = p.settings.optimiser, p.settings.batch
    text = f"{p.name}: learning rate {p.settings.peak_lr():.6g}"
    reference = optimiser.reference_batch
    return f"{text} = lr {optimiser.lr:g} x batch {batch} / reference_batch {reference}" if reference else text
