"""pipeline show [ROOT]: every run, how it differs from its like, and what it has come to."""

import json
import os
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import lines
from pipeline.commands import Parser, parse

if TYPE_CHECKING:
    from pipeline.runs import Run

ABOUT = """A line for each run: how it differs from others of its stage, its seed and length, what it has come to, its
size on disk and when it was finished; of an unfinished one how far it is. Of one run: its numbers with their
protocol."""
PROBES, DIFFERENCES = 2, 5
"""Probes at most whose tables are shown below the runs; settings at most that are named in a run's line."""
COLUMNS = ("run", "config", "objective", "differs in", "seed", "length", "result", "size", "when")
CONFIG = COLUMNS.index("config")


def main(words: Sequence[str]) -> int:
    parser = Parser(prog="pipeline show", description=ABOUT, allow_abbrev=False)
    parser.add_argument("runs", nargs="?", default="runs", metavar="ROOT",
                        help="folder of runs, or one run's folder (default: runs)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="a JSON object a run, for machines")
    options = parse(parser, words)
    if options.json:
        os.environ["PIPELINE_LOG"] = "json"
    from pipeline import runs, show

    found = runs.read(Path(options.runs).expanduser())
    if not found:
        lines.say(f"{options.runs}: nothing is finished yet")
        return 0
    differences = runs.Family(found).differences()
    if lines.machine():
        for run in found:
            say(run, differences.get(run.folder, {}))
        return 0
    rows = [row(run, differences.get(run.folder, {})) for run in found]
    filled = [i for i in range(len(COLUMNS)) if i != CONFIG and any(r[i] not in ("", None) for r in rows)]
    filled = sorted([*filled, *[CONFIG] * (len({r[CONFIG] for r in rows}) > 1)])
    count = f"{len(found)} run{'s' * (len(found) > 1)}, {lines.size(runs.total(found))}"
    cells = [[r[i] for i in filled] for r in rows]
    show.table(options.runs, [COLUMNS[i] for i in filled], cells, "\n".join([count, *protocols(found)]), dense=True)
    probes = [run.folder for run in found if run.done and run.record["metrics"].get("rows")]
    show.results(probes if len(probes) <= PROBES else [])
    if len(found) == 1 and found[0].metrics:
        show.table("all its numbers", ["number", "value"], [[n, f"{v:.6g}"] for n, v in found[0].metrics.items()])
    return 0


def protocols(found: Sequence["Run"]) -> list[str]:
    """How the numbers in the lines were come by, where they mean nothing without that."""
    texts = dict.fromkeys(run.settings.protocol for run in found if run.outcome and run.settings)
    text = "; ".join(filter(None, texts))
    return [f"%: {text}; pipeline show with a run's folder shows all its numbers, with their protocol"] if text else []


def row(run: "Run", differences: dict[str, Any]) -> list[Any]:
    """A run's line, a cell for each of COLUMNS."""
    length = [f"{count:,} {unit}" for unit, count in run.length.items()]
    return [
        run.folder.name,
        run.record.get("config"),
        run.objective if run.objective != run.name else "",
        settings(differences),
        run.record.get("seed"),
        length[-1] if length else "",
        result(run),
        lines.size(run.bytes),
        clock(run.when),
    ]


def clock(stamp: str) -> str:
    """The time of day, of another day its date."""
    moment = datetime.fromisoformat(stamp).astimezone()
    return f"{moment:%H:%M}" if moment.date() == datetime.now().date() else f"{moment:%Y-%m-%d}"


def settings(differences: dict[str, Any]) -> str:
    """"optimiser.lr 0.1, batch 64", the first DIFFERENCES of them."""
    texts = [f"{short(path, differences)} {text(value)}" for path, value in differences.items()]
    more = [f"{len(texts) - DIFFERENCES} more"] if len(texts) > DIFFERENCES else []
    return ", ".join(texts[:DIFFERENCES] + more)


def short(path: str, others: Iterable[str]) -> str:
    """The end of a path that no other one has."""
    parts = path.split(".")
    ends = (".".join(parts[-count:]) for count in range(1, len(parts)))
    return next((e for e in ends if sum(f".{other}".endswith(f".{e}") for other in others) == 1), path)


def text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def result(run: "Run") -> str:
    """What a run has come to or, unfinished, how far it is."""
    if run.done:
        return lines.numbers(run.outcome)
    if run.reached is None:
        return run.state
    numbers = {name: value for name, value in run.reached.numbers.items() if not name.endswith("_per_s")}
    text = f"{run.state} at {run.reached.step} of {run.reached.total} {run.reached.unit}"
    return ", ".join([text, *filter(None, [lines.numbers(numbers)])])


def say(run: "Run", differences: dict[str, Any]) -> None:
    """A run for machines: numbers are numbers."""
    record = run.record
    known = ("config", "kind", "key", "seed", "started", "finished", "seconds", "settings", "inputs", "metrics")
    facts = {name: record[name] for name in known if name in record}
    facts |= {"folder": str(run.folder), "state": run.state, "objective": run.objective, "differences": differences}
    facts |= {"outcome": run.outcome, "bytes": run.bytes, "when": run.when}
    facts |= {"progress": run.reached._asdict()} if run.reached else {}
    lines.say(result(run), run.name, "run", **facts)
