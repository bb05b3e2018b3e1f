"""The runs in a folder: what each was to be, how far it is, what it has come to, and how it differs from its like."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline import artifact, config, progress
from pipeline.errors import ConfigError
from pipeline.progress import Progress
from pipeline.settings.kinds import AnyObjective
from pipeline.settings.objectives import Objective
from pipeline.settings.stages import AnyStage, Stage


@dataclass(frozen=True)
class Run:
    """A folder that a stage is, or was, at work on. ``record``: artifact.json, or of an unfinished one begun.json;
    ``state``: done, running, failed or stopped; ``files``: bytes by (device, inode), which runs may share."""

    folder: Path
    record: dict[str, Any]
    state: str
    files: dict[tuple[int, int], int] = field(repr=False)
    reached: Progress | None = None

    @property
    def name(self) -> str:
        """The stage's."""
        return self.record.get("stage") or self.folder.name.rpartition("-")[0]

    @property
    def done(self) -> bool:
        return self.state == "done"

    @property
    def bytes(self) -> int:
        return sum(self.files.values())

    @property
    def moment(self) -> float:
        """When it was finished, or else last at work, in seconds since 1970."""
        return (self.folder / artifact.NAME if self.done else self.folder).stat().st_mtime

    @property
    def when(self) -> str:
        """The same as a date, UTC."""
        return self.record["finished"] if self.done else artifact.stamp(self.moment)

    @cached_property
    def settings(self) -> Stage | None:
        """As they were recorded, without the rules by which a config is checked; None where this code knows no such
        kind."""
        body, kinds = self.record.get("settings") or {}, config.by_kind(AnyStage)
        objective = config.by_kind(AnyObjective).get(self.objective, Objective if self.objective else None)
        parts = {"objective": objective.model_construct(**body["objective"])} if objective else {}
        kind = kinds.get(str(self.record.get("kind")))
        return kind.model_construct(**body | parts) if kind and body else None

    @property
    def metrics(self) -> dict[str, float]:
        """The plain numbers among those that it has come to."""
        found = self.record["metrics"] if self.done else {}
        return {name: value for name, value in found.items() if isinstance(value, int | float)}

    @property
    def outcome(self) -> dict[str, float]:
        """What is said of it; of one whose settings this code does not know, its first few numbers."""
        if not self.done or self.settings is None:
            return dict(list(self.metrics.items())[:3])
        return self.settings.outcome(self.record["metrics"])

    @property
    def objective(self) -> str:
        return (self.record.get("settings") or {}).get("objective", {}).get("kind", "")

    @property
    def length(self) -> dict[str, int]:
        """How long it trains: its epochs or steps."""
        settings = self.record.get("settings") or {}
        return {name: settings[name] for name in ("epochs", "steps") if settings.get(name)}


# ------------------------------------------------------------------------------------------------------------- reading
def read(root: Path) -> list[Run]:
    """Every run below a folder, or the one that the folder is; those of one stage side by side, the newest last.

    Raises ConfigError where the folder is not there."""
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder; expected the root of some runs, or one run's folder")
    found = [run for path in sorted([root, *filter(Path.is_dir, root.iterdir())]) if (run := read_one(path))]
    latest = {run.name: max(other.moment for other in found if other.name == run.name) for run in found}
    return sorted(found, key=lambda run: (latest[run.name], run.name, run.moment))


def read_one(folder: Path) -> Run | None:
    """The run that a folder is, None where it is none."""
    record = artifact.read(folder)
    if record is not None:
        return Run(folder, record, "done", sizes(folder))
    if not any((folder / name).exists() for name in (artifact.BEGUN, artifact.LOCK)):
        return None
    try:
        begun = json.loads((folder / artifact.BEGUN).read_text())
    except (OSError, ValueError):
        begun = {}
    state = "running" if artifact.locked(folder) else "failed" if (folder / artifact.FAILED).exists() else "stopped"
    return Run(folder, begun, state, sizes(folder), progress.read(folder))


def sizes(folder: Path) -> dict[tuple[int, int], int]:
    """The bytes of all files in a folder by device and inode."""
    found = {}
    for path in folder.rglob("*"):
        try:
            facts = path.lstat()
        except FileNotFoundError:  # a stage at work replaces its files
            continue
        if path.is_symlink() or path.is_file():
            found[facts.st_dev, facts.st_ino] = facts.st_size
    return found


def total(runs: Iterable[Run]) -> int:
    """The bytes of some runs, shared ones once."""
    return sum({key: size for run in runs for key, size in run.files.items()}.values())


# --------------------------------------------------------------------------------------------------------- differences
def flat(value: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """The values in nested groups by dotted path."""
    if not isinstance(value, dict):
        yield before, value
        return
    for name, part in value.items():
        yield from flat(part, f"{before}.{name}" if before else name)


def own(run: Run) -> dict[str, Any]:
    """The settings that can change a run's result, by path."""
    idle = run.settings.housekeeping() if run.settings else set()
    settings = run.record.get("settings") or {}
    return dict(flat({name: part for name, part in settings.items() if name not in {*idle, "seed"}}))


class Family:
    """Runs, and what each owes to its inputs."""

    def __init__(self, runs: Iterable[Run]):
        self.runs = list(runs)
        keys = ((run, run.record["key"]) for run in self.runs if "key" in run.record)
        self.by_identity = {artifact.identity(run.folder, key): run for run, key in keys}

    def settings(self, run: Run) -> dict[str, Any]:
        """What can change a run's result, by path: its own settings, and those of the runs that it stands on."""
        found = own(run)
        for name, identity in run.record.get("inputs", {}).items():
            below = self.by_identity.get(identity)
            if below is None:
                found[name] = identity[:8]
                continue
            found |= {f"{name}.{path}": value for path, value in self.settings(below).items()}
            if below.record.get("seed") != run.record.get("seed"):
                found[f"{name}.seed"] = below.record.get("seed")
        return found

    def differences(self) -> dict[Path, dict[str, Any]]:
        """Of each run, the settings that are not the same in all runs of its stage, its seed left out."""
        alike: dict[tuple[str, Any], list[Run]] = defaultdict(list)
        for run in self.runs:
            if run.record.get("settings"):
                alike[run.name, run.record.get("kind")].append(run)
        found: dict[Path, dict[str, Any]] = {}
        for runs in alike.values():
            tables = {run.folder: self.settings(run) for run in runs}
            varied = [path for path in union(tables.values()) if distinct(path, tables.values())]
            found |= {folder: {p: t[p] for p in varied if p in t} for folder, t in tables.items()}
        return found


def union(tables: Iterable[dict[str, Any]]) -> list[str]:
    """The paths of some tables, each once."""
    return list(dict.fromkeys(path for table in tables for path in table))


def distinct(path: str, tables: Iterable[dict[str, Any]]) -> bool:
    return len({json.dumps(table.get(path, ...), default=str) for table in tables}) > 1


def find(text: str, root: Path) -> Run:
    """The run that a word names: its folder, or the beginning of one folder's name below ``root``.

    Raises ConfigError where there is none, or more than one."""
    path = Path(text).expanduser()
    if path.is_dir() and (run := read_one(path)):
        return run
    where = path.parent if path.parent.is_dir() and path.parent != Path(".") else root
    names = sorted(p.name for p in where.iterdir() if p.is_dir()) if where.is_dir() else []
    close = [name for name in names if name.startswith(path.name)]
    runs = [run for name in close if (run := read_one(where / name))]
    if len(runs) == 1:
        return runs[0]
    if runs:
        raise ConfigError(f"{text}: {len(runs)} runs are called so: {', '.join(r.folder.name for r in runs)}")
    raise ConfigError(f"{text}: no such run in {where}{config.nearest(path.name, names)}")
