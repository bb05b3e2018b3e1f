"""The artifacts of a plan -> `facts.Results`: what is there, finished or not."""

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import artifact, plan, runs
from pipeline.plan import PlannedStage
from pipeline.report import curves, facts, rows
from pipeline.settings.nets import Portable
from pipeline.settings.stages import Pretrain

HIDDEN = {"checkpoints", "snapshots", "features", "predicted", "scores", "projector"}
"""Folders of an artifact in which no sheet is looked for."""
ENCODERS = 8
"""Encoders, at most, for which the commands are spelled out."""

Variants = Mapping[str, list[PlannedStage]]
"""The stages of a config by what marks each variant of a sweep: "seed=1"; one variant without a mark where there is
none."""


def results(words: Sequence[str], variants: Variants) -> facts.Results:
    """``words``: config and overrides as they were typed."""
    stages = plan.merge(dict(variants))
    records = {p.key: record for p in stages if not p.provisional and (record := artifact.read(p.folder))}
    labels = {p.key: p.label or p.name for p in stages}
    first = first_seeds(variants)
    done = [stage(p, records.get(p.key), labels, variants) for p in stages]
    return facts.Results(
        schema=facts.SCHEMA,
        name=stages[0].config,
        variants=[mark for mark in variants if mark],
        finished=max((s.finished for s in done if s.finished), default=None),
        incomplete=[s.label for s in done if s.state != "done"],
        packed=[packed(p, records[p.key]) for p in stages if p.key in records and p.packs],
        probes=list(probes(variants, records)),
        losses=curves.losses(p for p in stages if not p.provisional),
        trainings=list(curves.trainings(p for p in stages if not p.provisional)),
        sheets=[sheet for p in stages if p.key in first and not p.provisional for sheet in sheets(p)],
        stages=done,
        environment=list(environment({labels[key]: record for key, record in records.items()})),
        commands=list(commands(words, stages, records)),
    )


def stage(p: PlannedStage, record: dict[str, Any] | None, labels: dict[str, str], variants: Variants) -> facts.Stage:
    state, at, size = condition(p)
    return facts.Stage(
        label=labels[p.key],
        name=p.name,
        kind=p.kind,
        variants=[mark for mark, stages in variants.items() if mark and p.key in {q.key for q in stages}],
        needs=[labels[key] for key in p.needs.values()],
        key=p.key,
        folder=str(p.folder),
        state=state,
        at=at,
        seed=p.seed,
        bytes=size,
        seconds=record["seconds"] if record else None,
        finished=record["finished"] if record else None,
        numbers=numbers(record["metrics"]) if record else {},
    )


def condition(p: PlannedStage) -> tuple[str, str, int]:
    """The state of a stage; how far an unfinished one is, or why it failed; and its bytes."""
    if p.provisional:
        return "not begun", "known once its images are packed", 0
    run = runs.read_one(p.folder)
    if run is None:
        return "not begun", "", 0
    at = f"{run.reached.step} of {run.reached.total} {run.reached.unit}" if run.reached and not run.done else ""
    return run.state, last_error(p.folder) if run.state == "failed" else at, run.bytes


def last_error(folder: Path) -> str:
    """The last line of the traceback that a failed stage left; empty where it left none."""
    try:
        return (folder / artifact.LOG).read_text().strip().splitlines()[-1]
    except (OSError, IndexError):
        return ""


def numbers(metrics: Any, name: str = "") -> dict[str, float]:
    """The plain numbers among metrics, those in groups by group/name; but for a probe's rows and protocol."""
    if isinstance(metrics, dict):
        inside = {k: v for k, v in metrics.items() if name or k not in ("rows", "protocol")}
        return {k: v for key, value in inside.items() for k, v in numbers(value, f"{name}/{key}".strip("/")).items()}
    plain = isinstance(metrics, int | float) and not isinstance(metrics, bool)
    return {name: metrics} if plain else {}


def packed(p: PlannedStage, record: dict[str, Any]) -> dict[str, Any]:
    """Images of a packed set by split, and its classes."""
    metrics = record["metrics"]
    images = {name.removesuffix("_images"): n for name, n in metrics.items() if name.endswith("_images")}
    return {"stage": p.label or p.name, "images": images, "classes": metrics["classes"]}


def probes(variants: Variants, records: dict[str, dict[str, Any]]) -> Iterator[facts.Probe]:
    """The finished probes by name."""
    found: dict[str, dict[str, rows.Run]] = {}
    for mark, stages in variants.items():
        folders = {p.key: p.folder for p in stages}
        for p in stages:
            record = records.get(p.key)
            if record is None or "rows" not in record["metrics"]:
                continue
            settings: Any = p.settings
            encoders = {name: str(folders[key]) for name, key in p.needs.items() if name != settings.data}
            run = rows.read(unseeded(mark), p.folder, record, folders[p.needs[settings.data]], encoders)
            found.setdefault(p.name, {}).setdefault(f"{unseeded(mark)} {p.key}", run)
    return (rows.probe(name, list(runs.values())) for name, runs in found.items())


def unseeded(mark: str) -> str:
    """What marks a variant, less its seed."""
    return " ".join(word for word in mark.split(" ") if not re.fullmatch(r"(\w+\.)?seed=\d+", word))


def first_seeds(variants: Variants) -> set[str]:
    """Of stages that their seed alone tells apart the first one's key."""
    found: dict[tuple[str, str], str] = {}
    for mark, stages in variants.items():
        for p in stages:
            found.setdefault((unseeded(mark), p.name), p.key)
    return set(found.values())


def sheets(p: PlannedStage) -> Iterator[facts.Sheet]:
    """The pictures in a stage's folder and those of its parts."""
    for path in sorted(p.folder.glob("**/sheets/*.png")):
        file = path.relative_to(p.folder)
        if not HIDDEN.intersection(file.parts):
            parts = [p.label or p.name, *file.parts[:-2], path.stem.replace("-", " ")]
            yield facts.Sheet(p.label or p.name, str(p.folder), str(file), " · ".join(parts), description(path))


def description(path: Path) -> str:
    """The caption that a PNG holds."""
    from PIL import Image

    with Image.open(path) as image:
        return str(image.info.get("Description", ""))


def environment(records: dict[str, dict[str, Any]]) -> Iterator[facts.Environment]:
    """Versions, machine, threads and processes, each with the value that most stages have."""
    table: dict[str, dict[str, str]] = {}
    for label, record in records.items():
        known = {"cpu": record.get("cpu"), "host": record.get("host"), "git": record.get("git")}
        known |= {"threads": record.get("threads"), "processes": record.get("processes")}
        for name, value in (known | record.get("versions", {})).items():
            table.setdefault(name, {})[label] = "unknown" if value is None else str(value)
    for name, by_stage in table.items():
        (usual, _), *_ = Counter(by_stage.values()).most_common(1)
        yield facts.Environment(name, usual, {k: v for k, v in by_stage.items() if v != usual})


def commands(
    words: Sequence[str], stages: Iterable[PlannedStage], records: Mapping[str, Any]
) -> Iterator[facts.Command]:
    """What repeats the run, and what takes each finished encoder from here."""
    yield facts.Command("run it again", shlex.join(["pipeline", "run", *words]))
    yield facts.Command("draw this page again", shlex.join(["pipeline", "report", *words]))
    encoders = [p for p in stages if p.key in records and "encoder" in p.settings.makes]
    for p in encoders[:ENCODERS]:
        name, folder = p.label or p.name, shlex.quote(str(p.folder))
        words = f"pipeline embed {folder} IMAGES {p.name}.parquet"
        yield facts.Command(f"features of a folder of images by {name}", words)
        yield facts.Command(f"{name} for other programs", f"pipeline export {folder} {p.name}{onnx(p.settings)}")


def onnx(settings: Any) -> str:
    """The option with which an encoder is written that timm does not know; autoencoders hold more than their net."""
    known = isinstance(settings, Pretrain) and isinstance(settings.net, Portable)
    return "" if known and settings.objective.inputs.views else " --onnx"
