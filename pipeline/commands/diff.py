"""pipeline diff A B: the settings and inputs in which two runs differ, and by how much their numbers do."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.commands import Parser, parse, path

if TYPE_CHECKING:
    from pipeline.runs import Run

ABOUT = """What two runs differ in: settings (their own, and those of the runs that they stand on), inputs, and
numbers. Two probes that evaluated on the same images are compared image by image: each row's difference has its 95 %
interval over label draws and test images."""
ACCURACIES = {"linear_top1": "linear", "linear_few": "linear, few labels", "knn_top1": "kNN"}


class Lead(dict[str, float]):
    """A ``mean`` difference of shares and its 95 % interval from ``low`` to ``high``, said in points."""

    def __str__(self) -> str:
        mean, *ends = (f"{100 * value:+.2f}" for value in self.values())
        return f"{mean} [{', '.join(ends)}]" if ends else mean


def main(words: Sequence[str]) -> int:
    parser = Parser(prog="pipeline diff", description=ABOUT, allow_abbrev=False)
    for name in ("A", "B"):
        parser.add_argument(name, help="a run's folder, or the beginning of its name")
    parser.add_argument("--root", type=path, default=Path("runs"), help="folder of runs (default: runs)")
    parser.add_argument("--json", action="store_true", help="tables as JSON objects, for machines")
    options = parse(parser, words)
    if options.json:
        os.environ["PIPELINE_LOG"] = "json"
    from pipeline import lines, runs, show

    pair = runs.find(options.A, options.root), runs.find(options.B, options.root)
    names = [run.folder.name for run in pair]
    tables = [runs.Family(runs.read(run.folder.parent)).settings(run) | own_facts(run) for run in pair]
    varied = [p for p in runs.union(tables) if runs.distinct(p, tables)]
    if pair[0].record.get("kind") != pair[1].record.get("kind"):  # of other kinds nearly all settings are others
        varied = [p for p in varied if all(p in table for table in tables)]
    inputs = [run.record.get("inputs", {}) for run in pair]
    changed = [name for name in runs.union(inputs) if runs.distinct(name, inputs)]
    if varied:
        show.table("settings", ["setting", *names], [[p, *(cell(t, p) for t in tables)] for p in varied])
    if changed:
        show.table("inputs", ["input", *names], [[n, *((t.get(n) or "-")[:8] for t in inputs)] for n in changed])
    if not varied and not changed:
        lines.say("no setting and no input differs")
    if all(run.record.get("metrics", {}).get("rows") for run in pair):
        probes(*pair)
    elif rows := list(plain(*pair)):
        show.table("numbers", ["number", *names, "difference"], rows)
    return 0


def own_facts(run: "Run") -> dict[str, Any]:
    return {name: run.record.get(name) for name in ("kind", "seed", "threads", "processes") if name in run.record}


def cell(table: dict[str, Any], name: str) -> Any:
    """A setting's value; none where the run has no such setting, and null as it is written."""
    value = table.get(name, "-")
    return value if isinstance(value, str | int | float) and not isinstance(value, bool) else json.dumps(value)


def plain(a: "Run", b: "Run") -> Iterator[list[Any]]:
    """The numbers that both runs have."""
    for name in (name for name in a.metrics if name in b.metrics):
        first, second = a.metrics[name], b.metrics[name]
        yield [name, Number(first), Number(second), Number(second - first)]


class Number(float):
    """Said to six digits."""

    def __str__(self) -> str:
        return f"{float(self):.6g}"


# -------------------------------------------------------------------------------------------------------------- probes
def probes(a: "Run", b: "Run") -> None:
    """The accuracies of each row of two probes, and how far the second is ahead."""
    from pipeline import show

    before, after = (run.record["metrics"]["rows"] for run in (a, b))
    paired, body = alike(a, b), []
    for name in (name for name in before if name in after):
        for key, words in ACCURACIES.items():
            one, two = before[name].get(key), after[name].get(key)
            if one is not None and two is not None:
                lead = of_row(a, b, name, key) if paired else Lead(mean=two - one)
                body.append([name, words, show.Share(one), show.Share(two), lead])
    others = sorted(before.keys() ^ after.keys())
    interval = "95 % interval over label draws and test images"
    note = f"difference: {b.folder.name} less {a.folder.name}, in points; "
    note += interval if paired else "without interval: they saw other images or label draws"
    note += f"\nin one of them alone: {', '.join(others)}" if others else ""
    columns = ["encoder", "accuracy", a.folder.name, b.folder.name, "difference"]
    show.table("accuracies", columns, body, note)


def alike(a: "Run", b: "Run") -> bool:
    """Whether two probes saw the same images and label draws."""
    first, second = (json.loads((run.folder / "results.json").read_text()) for run in (a, b))
    same_data = first["protocol"]["data"] == second["protocol"]["data"]
    return same_data and first["label_draws"] == second["label_draws"]


def of_row(a: "Run", b: "Run", name: str, key: str) -> Lead:
    """How far the second probe's row of this name is ahead of the first's, image by image."""
    from pipeline.evaluation import intervals, predictions

    first, second = (predictions.right(run.folder, name, key) for run in (a, b))
    assert first is not None and second is not None
    return Lead(intervals.of_images(second, first)._asdict())
