"""Plan, run, artifact: the graph of a config in order, each stage once.

    plan(config) -> [Planned]        what there is to do, without torch
    execute(planned, ...)            does it; independent stages side by side where a cluster takes them
    work(job, make_world)            one stage, in whatever process it was placed
"""

import errno
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline import artifact, config, progress
from pipeline.errors import ConfigError, NoProgressError, PipelineError, Stopped
from pipeline.settings.stages import Stage


@dataclass(frozen=True)
class Planned:
    """A stage of the config, its key, and whether its artifact exists. ``inputs``: keys by stage name."""

    name: str
    kind: str
    settings: Stage
    seed: int
    key: str
    folder: Path
    inputs: dict[str, str]
    outside: dict[str, str]
    place: str
    """here, task or workers."""
    done: bool


@dataclass(frozen=True)
class Job:
    """What a process needs to know to run one stage: plain and picklable. ``inputs``: folders by stage name."""

    name: str
    kind: str
    settings: Stage
    seed: int
    inputs: dict[str, str]
    out: str
    key: str
    stop_file: str
    """Asks the stage to save and leave, once it exists."""
    cwd: str
    """What relative paths in settings are relative to."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What artifact.json says of where this comes from."""


# ---------------------------------------------------------------------------------------------------------------- plan
def plan(cfg: "config.Config", here: bool = False) -> list[Planned]:
    """Every stage after the stages it needs, in the config's order otherwise."""
    edges = {name: config.needs(stage) for name, stage in cfg.stages.items()}
    planned: dict[str, Planned] = {}
    for name in TopologicalSorter(edges).static_order():
        stage = cfg.stages[name]
        seed = cfg.seed if stage.seed is None else stage.seed
        inputs = {ref: planned[ref].key for ref in edges[name]}
        outside = artifact.fingerprint(stage)
        key = artifact.key(stage.kind, stage, seed, inputs, outside)
        folder = artifact.folder(Path(cfg.root), name, key)
        done = artifact.done(folder, key) is not None
        place = placement(stage, here)
        planned[name] = Planned(name, stage.kind, stage, seed, key, folder, inputs, outside, place, done)
    return list(planned.values())


def placement(stage: Stage, here: bool) -> str:
    """Where a stage runs: as its settings say; auto: a Ray task where ray can be imported, else here. A process of a
    launcher's world, or of a cluster's workers, runs everything itself."""
    if here or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return "here"
    if stage.place.on == "auto":
        return "task" if find_spec("ray") else "here"
    return stage.place.on


def only(planned: list[Planned], names: Iterable[str]) -> list[Planned]:
    """The stages named, and those not yet done that they need."""
    by_name = {p.name: p for p in planned}
    wanted, todo = set(), list(names)
    while todo:
        name = todo.pop()
        if name not in by_name:
            raise ConfigError(f"--only {name}: no such stage{config.nearest(name, by_name)}")
        if name not in wanted:
            wanted.add(name)
            todo += [ref for ref in by_name[name].inputs if not by_name[ref].done]
    return [p for p in planned if p.name in wanted]


def job(p: Planned, planned: list[Planned]) -> Job:
    folders = {q.name: str(q.folder.resolve()) for q in planned if q.name in p.inputs}
    out = p.folder.resolve()
    facts = {
        "stage": p.name,
        "kind": p.kind,
        "key": p.key,
        "settings": p.settings.model_dump(mode="json"),
        "seed": p.seed,
        "inputs": p.inputs,
        "fingerprints": p.outside,
        "placement": p.place,
    }
    return Job(
        p.name, p.kind, p.settings, p.seed, folders, str(out), p.key, str(out / artifact.STOP), os.getcwd(), facts
    )


# ---------------------------------------------------------------------------------------------------------------- work
def work(job: Job, make_world: Callable[..., Any], asked: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Runs one stage under its key's lock and writes its artifact; returns the metrics. Called by every process of
    the stage's world; ``make_world(threads, stop)`` joins it, such as `World`. ``asked``: whether this process was
    told to stop, beside the job's stop file. Raises nothing but PipelineError.

    A fault that is not the user's leaves its traceback in the folder's error.log and one line to show.
    """
    out = Path(job.out)

    def stop() -> bool:
        return asked() or os.path.exists(job.stop_file)

    try:
        if Path(job.cwd).is_dir():
            os.chdir(job.cwd)
        world = make_world(job.settings.threads, stop)
        with artifact.Lock(out, said(job), stop) if world.main else nullcontext() as lock:
            record = world.share(artifact.done(out, job.key) if world.main else None)
            if record is not None:  # by the process that this one waited for
                return record["metrics"]
            if world.main:
                changed = artifact.begin(out)
                if changed:
                    said(job)(f"goes on with other versions than it began with: {changed}")
            stage = importlib.import_module(f"pipeline.stages.{job.kind}")
            inputs = {name: Path(folder) for name, folder in job.inputs.items()}
            metrics = stage.run(job.settings, job.seed, inputs, out, world)
            if lock is not None:
                if not lock.held():
                    raise PipelineError(f"{job.name}: another process took over {out} while this one slept")
                facts = job.facts | {"threads": job.settings.threads, "processes": world.size}
                metrics = artifact.finish(out, facts, metrics)["metrics"]
            return world.share(metrics)
    except Stopped as stopped:
        raise Stopped(f"{job.name}: {stopped}") from None
    except PipelineError as error:
        log(out, error)
        raise type(error)(f"{job.name}: {error}") from None
    except Exception as error:
        raise explained(job, error) from None


def explained(job: Job, error: Exception) -> PipelineError:
    """A full disk in one line; anything else is a fault of ours, and its traceback goes to the log."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "No space left on device" in str(error):
        return NoProgressError(
            f"{job.name}: no space left on the disk of {job.out}: free some, then run the same command again"
        )
    where = log(Path(job.out), error)
    return PipelineError(f"{job.name}: a fault of ours, {type(error).__name__}: {first(error)} (traceback in {where})")


def first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"


def log(out: Path, error: Exception) -> Path:
    """Appends the traceback to the folder's error.log, where that can be written."""
    path = out / artifact.LOG
    try:
        with path.open("a") as file:
            traceback.print_exception(error, file=file)
    except OSError:
        traceback.print_exception(error, file=sys.stderr)
    return path


def said(job: Job) -> Callable[[str], None]:
    return lambda text: print(f"{job.name}: {text}", flush=True)


# ------------------------------------------------------------------------------------------------------------- execute
class Stop:
    """Whether this process was asked to stop: TERM, USR2 or INT set a flag and nothing else, so that a second one
    does not lose the save; a third INT does not wait for it."""

    SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)

    def __init__(self):
        self.asked, self.interrupts, self.before = False, 0, {}

    def __call__(self) -> bool:
        return self.asked

    def handle(self, number: int, _frame: object) -> None:
        self.asked = True
        self.interrupts += number == signal.SIGINT
        if self.interrupts > 2:
            raise KeyboardInterrupt

    def __enter__(self) -> "Stop":
        self.before = {number: signal.signal(number, self.handle) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        # Once asked, a further signal must not kill the process on its way to exit code 75.
        for number, before in self.before.items():
            signal.signal(number, signal.SIG_IGN if self.asked else before)


def execute(planned: list[Planned], chosen: list[Planned], say: Callable[[str], None] = print) -> int:
    """Runs what is not done of ``chosen``, each stage once those it needs are done. Returns the exit code.

    After a failure no new stage starts; those in flight finish.
    """
    waiting = {p.name: p for p in chosen if not p.done}
    for p in chosen:
        if p.done:
            say(f"{p.name}: done already, {p.folder}")
    finished = {p.name for p in planned if p.done}
    with Stop() as stop:
        for name, p in waiting.items():
            if stop():
                say(f"stopped before {name}; the same command goes on")
                return Stopped.code
            from pipeline.placement import here

            say(f"{name}: runs here, {p.folder}")
            try:
                here.run_stage(job(p, planned), stop)
            except PipelineError as error:
                say(str(error))
                return error.code
            finished.add(name)
            say(f"{name}: done")
    return 0
