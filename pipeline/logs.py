"""What TensorBoard is given of a config: a folder with a run for each encoder, in which links lead to the event files
of the stages that trained it, evaluated it and drew with it. So everything of this config is ticked, and nothing else.

    runs/pages/quickstart-1234abcd/tensorboard/moco/events.out.tfevents.… -> runs/moco-…, runs/probe-…/moco
"""

import json
import os
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipeline import charts, events, page, runs, tags
from pipeline.plan import PlannedStage
from pipeline.settings.stages import Codes, Generate, Pretrain

Variants = dict[str, list[PlannedStage]]
"""The stages of each variant of a config, by what marks it."""
SECONDS = 5.0
"""Between two looks at what running stages have written."""
PAGE = 1e4
"""Seconds after which the page and its lines stand in TensorBoard's list, after all encoders."""
GROWTH = 1.5
"""A training's steps over those at which lines in its charts ended, from which these are drawn on."""
READ = 1 << 22  # bytes of a file of scalars from which its tags are known
BESIDE = ("projector_config.pbtxt", "projector")
RESULTS = ["accuracy/linear_few", "accuracy/linear_top1", "accuracy/knn_top1", "collapse/rankme", "learn/loss"]
ADDRESS = "http://localhost:6006/?smoothing=0#custom_scalars&_smoothingWeight=0"
"""Of the page that answers the questions, without smoothing, which would draw a probe's five points elsewhere."""
TICKED = 40
"""Runs, at most, that TensorBoard shows without being told to; of more it shows none."""


class Logs:
    """The log folder of a config's runs. ``name``: the config's."""

    def __init__(self, root: Path, name: str):
        self.root, self.name = root, name
        self.sections: dict[str, Any] = {}
        self.last = 0

    def folder(self, variants: Variants) -> Path:
        keys = (p.key for stages in variants.values() for p in stages)
        return page.folder(self.root, self.name, keys) / "tensorboard"

    @contextmanager
    def kept(self, variants: Callable[[], Variants]) -> Iterator[None]:
        """Keeps the folder as the stages are while the block runs."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(SECONDS):
                self.refresh(variants(), done=False)

        thread = threading.Thread(target=watch, daemon=True)
        self.refresh(variants(), done=False)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.refresh(variants())

    def refresh(self, variants: Variants, done: bool = True) -> None:
        """Makes links to what there is now, and the page for it. Keys that packing will change have no folder yet; on
        a file system without links there is none. ``done``: no stage runs any more."""
        if any(p.provisional for stages in variants.values() for p in stages):
            return
        with suppress(OSError):
            out, found = self.folder(variants), sources(variants)
            for run, folders in found.items():
                link(out / run, folders)
            self.write_rows(out, variants)
            curves = [Curves(folders) for folders in found.values()]
            shown, last = charts.sections(c.tags for c in curves), max((c.last for c in curves), default=0)
            if shown != self.sections:
                self.write_page(out, shown, variants)
            if last > (1 if done else GROWTH) * self.last:
                self.write_lines(out, last, variants)

    def write_rows(self, out: Path, variants: Variants) -> None:
        """The rows of the HParams page: of each run that there is, once. They come before all else in TensorBoard's
        list, which has seven colours in turn: those that a probe compares first, so that as few as can be of these
        share one, and variant by variant, so that of seven rows each has the same colour in all."""
        probed = {name for group in variants.values() for p in group for name in getattr(p.settings, "encoders", ())}
        place = {}
        for i, (run, values) in enumerate(rows(variants).items()):
            unprobed = values["objective"] != "none" and values["encoder"] not in probed
            place[run] = 1.0 + i + (2000 if unprobed else 0)
        for run, values in rows(variants).items():
            path = out / run / file_name(0, "hparams")
            if path.parent.exists() and not path.exists():
                events.write(path, [(0, events.hparams(run, values))], place[run])

    def write_page(self, out: Path, found: dict[str, Any], variants: Variants) -> None:
        """The custom scalars, columns of the HParams page and a guide, where other charts than before have something
        to show. TensorBoard takes the newest file for the page."""
        run = out / self.name
        for old in run.glob("*.page") if not self.sections else ():
            old.unlink()
        columns = list(dict.fromkeys(name for values in rows(variants).values() for name in values))
        summaries = [
            events.layout(charts.layout(found, len(rows(variants)))),
            events.hparams_columns(columns, RESULTS),
            events.text("reading", f"{charts.guide(found)}\n\n{tags.markdown()}"),
        ]
        now = int(time.time())
        events.write(run / file_name(now, "page"), [(now, one) for one in summaries], PAGE)
        self.sections = found

    def write_lines(self, out: Path, last: int, variants: Variants) -> None:
        """What marks in the charts what is healthy, on from where it ended to the step ``last``."""
        for i, (line, values) in enumerate(lines(variants).items()):
            points = [(s, events.scalar(tag, v)) for tag, v in values.items() for s in (self.last or 1, last)]
            events.write(out / line / file_name(last, "line"), points, PAGE + 1 + i)
        self.last = last


class Curves:
    """The scalars that some folders have."""

    def __init__(self, folders: list[Path]):
        files = [folder / name for folder in folders for name in ("metrics.jsonl", "timings.jsonl")]
        self.rows = [row for path in files for row in scalars(path)]

    @cached_property
    def tags(self) -> set[str]:
        """Those of which there is something to show: no image that cannot be read is nothing."""
        found = {tag for row in self.rows for tag in row}
        return found if any(row.get("speed/bad") for row in self.rows) else found - {"speed/bad"}

    @property
    def last(self) -> int:
        """The last step of a training."""
        return max((int(row["step"]) for row in self.rows if "learn/loss" in row), default=0)


def scalars(path: Path) -> list[dict[str, float]]:
    """The rows of a file of scalars, of a large one the last; a last one that is not whole yet is left out."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - READ))
        lines = file.read().split(b"\n")
    found = []
    for line in lines:
        with suppress(ValueError):
            found.append(json.loads(line))
    return [row for row in found if isinstance(row, dict)]


def file_name(number: int, what: str) -> str:
    """An event file of ours in a run's folder."""
    return f"events.out.tfevents.{number:010}.{what}"


# -------------------------------------------------------------------------------------------------------------- runs
def names(variants: Variants) -> dict[Path, str]:
    """The run that each stage's folder is shown as: the stage's name, and what marks all variants that share it."""
    marks: dict[Path, list[list[str]]] = {}
    stages = {p.folder: p for group in variants.values() for p in group}
    for mark, group in variants.items():
        for p in group:
            marks.setdefault(p.folder, []).append(mark.replace(os.sep, "_").split())
    shared = {folder: [w for w in found[0] if all(w in other for other in found)] for folder, found in marks.items()}
    return {folder: " ".join([stages[folder].name, *words])[:200] for folder, words in shared.items()}


def sources(variants: Variants) -> dict[str, list[Path]]:
    """The folders whose events are shown as one run, by its name: a stage's own, what is drawn with a model beside its
    training, and a probe's row beside the encoder. Where two probes have a row of the same name, theirs are apart."""
    named, found, by_probe = names(variants), {}, {}
    for stages in variants.values():
        by_name = {p.name: p for p in stages}
        for p in stages:
            owner = by_name[p.settings.model] if isinstance(p.settings, Generate) else p
            own = [p.folder, *(p.folder / part for part in ("lista", "held_out") if p.kind == "codes")]
            found.setdefault(named[owner.folder], {}).update(dict.fromkeys(own))
            for row in probe_rows(p):
                run = named[by_name[row].folder] if row in by_name else named[p.folder].replace(p.name, row, 1)
                by_probe.setdefault(run, {})[named[p.folder]] = p.folder / row
    for run, folders in by_probe.items():
        for probe, folder in folders.items():
            name = run if len(folders) == 1 else f"{run} ({probe})"
            found.setdefault(name, {})[folder] = None
    return {run: list(folders) for run, folders in found.items()}


def probe_rows(p: PlannedStage) -> list[str]:
    """The rows that a probe has written so far."""
    return sorted(path.parent.name for path in p.folder.glob(f"*/{events.FILES}")) if p.kind == "probe" else []


def link(run: Path, folders: list[Path]) -> None:
    """Makes the links in a run's folder those that lead to the event files of ``folders``."""
    paths = [path for folder in folders for path in [*folder.glob(events.FILES), *(folder / b for b in BESIDE)]]
    wanted = {path.name: os.path.relpath(path, run) for path in paths if path.exists()}
    if wanted:
        run.mkdir(parents=True, exist_ok=True)
    for path in run.iterdir() if run.exists() else ():
        if path.is_symlink() and wanted.get(path.name) != os.readlink(path):
            path.unlink()
    for name, target in wanted.items():
        with suppress(FileExistsError):
            (run / name).symlink_to(target)


# ------------------------------------------------------------------------------------------------- settings and lines
def rows(variants: Variants) -> dict[str, dict[str, Any]]:
    """What each encoder was made with, by its run: what matters, and what is not the same in all of its objective;
    variant by variant, each with what its probes hold encoders against."""
    named = names(variants)
    stages = {named[p.folder]: p for group in variants.values() for p in group}
    chosen = {run: p for run, p in stages.items() if isinstance(p.settings, Pretrain | Codes)}
    every = {run: flat(p.settings.key_parts()) for run, p in chosen.items()}
    found = {run: main_settings(p) for run, p in chosen.items()}
    for run, values in found.items():
        like = [every[r] for r in found if found[r]["objective"] == values["objective"]]
        odd = {key for other in like for key in other if len({str(o.get(key)) for o in like}) > 1}
        values |= {key: every[run][key] for key in sorted(odd & every[run].keys()) if key.split(".")[-1] not in values}
        values["folder"] = str(chosen[run].folder)
    every_row = {}
    for run, p in stages.items():
        every_row |= {run: found[run]} if run in found else {}
        for row in sorted(set(probe_rows(p)) - set(getattr(p.settings, "encoders", ()))):
            beside = {"encoder": row, "objective": "none", "folder": str(p.folder / row)}
            every_row[run.replace(p.name, row, 1)] = beside
    return every_row


def address(variants: Variants) -> str:
    """Of the page, where TensorBoard has started, with every run ticked: of more than it ticks by itself it is told
    their names."""
    every = [*sources(variants), *lines(variants)]
    if len(every) < TICKED:
        return ADDRESS
    state = json.dumps(dict.fromkeys(every, True), separators=(",", ":"))
    return f"{ADDRESS}&runSelectionState={quote(b64encode(state.encode()), safe='')}"


def main_settings(p: PlannedStage) -> dict[str, Any]:
    """The settings of an encoder that a reader asks for first."""
    s = p.settings
    if isinstance(s, Codes):
        return {"encoder": p.name, "objective": "codes", "batch": s.batch, "seed": p.seed, "atoms": s.atoms}
    assert isinstance(s, Pretrain)
    own = {name: getattr(s.objective, name) for name in ("temperature", "queue") if hasattr(s.objective, name)}
    length = {"steps": s.steps} if s.steps else {"epochs": s.epochs}
    views = {"views": s.views[0].kind} if s.objective.inputs.views else {}
    first = {"encoder": p.name, "objective": s.objective.kind, **own, "batch": s.batch, "lr": s.peak_lr(), **length}
    return first | views | {"net": s.net.kind, "seed": p.seed}


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Nested settings by dotted names; lists as text."""
    return {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in runs.flat(settings)}


def lines(variants: Variants) -> dict[str, dict[str, float]]:
    """Runs of constants that stand in the charts as lines: what a healthy training comes near, and past what one has
    collapsed; where heads differ in width, one of each."""
    sizes = {
        (head.dim, p.settings.batch)
        for group in variants.values()
        for p in group
        if isinstance(p.settings, Pretrain) and (head := getattr(p.settings.objective, "head", None))
    }
    found = {}
    for dim, batch in sorted(sizes):
        mark = f" dim={dim} batch={batch}" if len(sizes) > 1 else ""
        found[f"healthy{mark}"] = {"collapse/std": dim**-0.5, "collapse/directions": float(min(dim, batch))}
        limits = {"collapse/std": tags.POINT * dim**-0.5, "collapse/directions": tags.NARROW}
        found[f"collapsed{mark}"] = limits | {"collapse/alignment_ratio": tags.FAR, "energy/gap": tags.FLAT}
    return found
