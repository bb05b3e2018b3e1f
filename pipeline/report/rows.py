"""What a config's probes measured, over all seeds and settings of a sweep: rows, paired differences, a verdict."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluation import intervals, names
from pipeline.evaluation.predictions import right
from pipeline.report import confusion, facts
from pipeline.report.curves import curve


@dataclass(frozen=True)
class Run:
    """One finished probe. ``variant``: the settings of a sweep that it is of, less the seed; ``record``: its
    artifact.json; ``results``: its results.json; ``shards``: the folder of its images; ``folders``: those of its
    encoders."""

    variant: str
    folder: Path
    record: dict[str, Any]
    results: dict[str, Any]
    shards: Path
    folders: dict[str, str]

    @property
    def seed(self) -> int:
        return self.record["seed"]

    @property
    def encoders(self) -> list[str]:
        """Names of the rows that are encoders of the config, with those of their heads."""
        named = self.record["settings"]["encoders"]
        return [name for name in self.results["rows"] if name in named or name.removesuffix("_projection") in named]


def read(variant: str, folder: Path, record: dict[str, Any], shards: Path, folders: dict[str, str]) -> Run:
    return Run(variant, folder, record, json.loads((folder / "results.json").read_text()), shards, folders)


@dataclass(frozen=True)
class Entry:
    """A row's probes, one a seed."""

    name: str
    variant: str
    runs: list[Run]

    @property
    def label(self) -> str:
        text = names.row(self.name, self.runs[0].results["untrained"])
        return f"{text} · {self.variant}" if self.variant else text

    @property
    def trained(self) -> bool:
        return self.name in self.runs[0].encoders

    def numbers(self, metric: str) -> list[float]:
        return [run.results["rows"][self.name][metric] for run in self.runs]


def entries(runs: list[Run]) -> list[Entry]:
    """The rows of all variants; one that is the same in all of them stands once."""
    variants: dict[str, list[Run]] = {}
    for run in runs:
        variants.setdefault(run.variant, []).append(run)
    found = []
    for name in dict.fromkeys(name for run in runs for name in run.results["rows"]):
        rows = {v: [r for r in members if name in r.results["rows"]] for v, members in variants.items()}
        rows = {v: members for v, members in rows.items() if members}
        scores = [[(r.seed, r.results["rows"][name]) for r in members] for members in rows.values()]
        same = len(rows) == len(variants) and all(s == scores[0] for s in scores)
        found += [Entry(name, "" if same else v, members) for v, members in list(rows.items())[: 1 if same else None]]
    return found


def probe(stage: str, runs: list[Run]) -> facts.Probe:
    """What the probes of one name measured."""
    rows = entries(runs)
    metrics = sorted(metrics_of(runs), key=lambda metric: metric.key != names.FEW)
    main = metrics[0]
    rows.sort(key=lambda entry: (not entry.trained, -np.mean(entry.numbers(main.key))))
    differences = list(all_differences(rows, metrics))
    drawn = [row(entry, metrics) for entry in rows]
    leader = rows[0] if rows[0].trained else None
    return facts.Probe(
        stage=stage,
        seeds=sorted({run.seed for run in runs}),
        metrics=metrics,
        protocol=protocol(runs),
        rows=drawn,
        differences=differences,
        verdict=verdict(main, drawn[0], differences) if leader else None,
        along=[found for m in metrics if (found := along(m, rows))],
        confusion=confusion.confusion(leader.label, leader.name, leader.runs[0]) if leader else None,
    )


def protocol(runs: list[Run]) -> dict[str, Any]:
    """What the probes' artifacts have; what is not the same in all, by what marks each."""
    each = {f"{run.variant} seed={run.seed}".strip(): run.record["metrics"]["protocol"] for run in runs}
    found: dict[str, Any] = {}
    for part in dict.fromkeys(part for one in each.values() for part in one):
        values = {mark: one[part] for mark, one in each.items() if part in one}
        first, *others = values.values()
        found[part] = first if all(other == first for other in others) else values
    return found | ({"seed": sorted({run.seed for run in runs})} if len(each) > 1 else {})


def metrics_of(runs: list[Run]) -> Iterator[facts.Metric]:
    """The accuracies that every row has, in the words of the protocol."""
    protocol, rows = runs[0].record["metrics"]["protocol"], [r for run in runs for r in run.results["rows"].values()]
    for key in runs[0].record["metrics"]["rows"][names.PIXELS]:
        if not key.endswith("_sd") and all(isinstance(r.get(key), float) for r in rows):
            yield facts.Metric(key, names.accuracy(key, protocol))


def row(entry: Entry, metrics: list[facts.Metric]) -> facts.Row:
    values = {m.key: value(entry, m.key) for m in metrics}
    folder = entry.runs[0].folders.get(entry.name.removesuffix("_projection"))
    return facts.Row(entry.name, entry.label, entry.variant, entry.trained, values, folder)


def value(entry: Entry, metric: str) -> facts.Value:
    numbers, first = entry.numbers(metric), entry.runs[0]
    if len(numbers) > 1:
        return facts.Value(float(np.mean(numbers)), float(np.std(numbers, ddof=1)), len(numbers), "seeds")
    protocol, sd = first.record["metrics"]["protocol"], first.results["rows"][entry.name].get(f"{metric}_sd")
    if sd is not None:
        return facts.Value(numbers[0], sd, protocol["draws"], "label draws")
    count = protocol["n_test"]
    return facts.Value(numbers[0], (numbers[0] * (1 - numbers[0]) / count) ** 0.5, count, "test images")


# --------------------------------------------------------------------------------------------------------- differences
def all_differences(rows: list[Entry], metrics: list[facts.Metric]) -> Iterator[facts.Difference]:
    """Every encoder against raw pixels and against its own network untrained; the first against the other encoders."""
    trained = [entry for entry in rows if entry.trained]
    for metric in metrics:
        for entry in trained:
            for against, other in baselines(entry, rows):
                yield from difference(entry, other, metric.key, against)
        for other in trained[1:]:
            yield from difference(trained[0], other, metric.key, "the next")


def baselines(entry: Entry, rows: list[Entry]) -> Iterator[tuple[str, Entry]]:
    """Raw pixels, and the entry's own network untrained, where they were measured with it."""
    owners = entry.runs[0].results["untrained"]
    base = entry.name.removesuffix("_projection")
    own = next((name for name, encoders in owners.items() if base in encoders), None)
    for against, name in (("raw pixels", names.PIXELS), ("untrained", own)):
        found = [r for r in rows if r.name == name and r.variant in ("", entry.variant)]
        yield from ((against, r) for r in found[:1])


def difference(a: Entry, b: Entry, metric: str, against: str) -> Iterator[facts.Difference]:
    """None where they share no seed, or other test images."""
    pairs = [(one, other) for one in a.runs for other in b.runs if one.seed == other.seed]
    tables = [(right(one.folder, a.name, metric), right(other.folder, b.name, metric)) for one, other in pairs]
    if not tables or any(x is None or y is None or x.shape != y.shape for x, y in tables):
        return
    found, n, over = interval(tables)
    decided = not found.low <= 0 <= found.high
    yield facts.Difference(a.label, b.label, metric, against, *found, n, over, decided)


def interval(tables: list[Any]) -> tuple[intervals.Interval, int, str]:
    """The interval, the count and the name of what it is over."""
    if len(tables) == 1:
        draws, images = tables[0][0].shape
        return intervals.of_images(*tables[0]), images, "label draws and test images" if draws > 1 else "test images"
    leads = [one.astype(float) - other.astype(float) for one, other in tables]
    return intervals.of_seeds([x[0] if len(x) == 1 else x.mean(1) for x in leads]), len(leads), "seeds"


def verdict(metric: facts.Metric, row: facts.Row, differences: Iterable[facts.Difference]) -> facts.Verdict:
    """What the leading row is worth."""
    own = [d for d in differences if d.metric == metric.key and d.a == row.label]
    pixels, untrained, rival = (
        next((d for d in own if d.against == against), None) for against in ("raw pixels", "untrained", "the next")
    )
    answer = "none"
    if pixels is not None:
        answer = "undecided" if not pixels.decided else "ahead" if pixels.mean > 0 else "behind"
    return facts.Verdict(metric, row, answer, pixels, untrained, rival)


# ------------------------------------------------------------------------------------------------------ along training
def along(metric: facts.Metric, rows: list[Entry]) -> facts.Chart | None:
    """The rows' accuracies over the steps of their snapshots, means over seeds; None where there are no snapshots."""
    lines = {entry.label: list(points(entry, metric.key)) for entry in rows}
    if not any(len(line) > 1 for line in lines.values()):
        return None
    curves = [curve(label, line) for label, line in lines.items() if line]
    return facts.Chart(metric.label, metric.key, curves)


def points(entry: Entry, metric: str) -> Iterator[tuple[int, float]]:
    """(step, accuracy) where every seed has that step."""
    steps = [run.results["rows"][entry.name]["steps"] for run in entry.runs]
    for step in steps[0]:
        numbers = [np.mean(each[step][metric]) for each in steps if step in each]
        if len(numbers) == len(steps):
            yield int(step), float(np.mean(numbers))
