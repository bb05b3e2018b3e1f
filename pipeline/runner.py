"""Plan, run, artifact: the graph of a config in order, each stage once.

    plan(config) -> [Planned]        what there is to do, without torch
    execute(planned, ...)            does it; independent stages side by side where a cluster takes them
    work(job, make_world)            one stage, in whatever process it was placed
"""

import importlib
import os
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from graphlib import TopologicalSorter
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import artifact, config, errors, launcher, lines
from pipeline.errors import ClusterError, ConfigError, PipelineError, Stopped
from pipeline.settings.stages import Stage

if TYPE_CHECKING:
    from pipeline.show import Watch


@dataclass(frozen=True)
class Planned:
    """A stage of the config, its key, and whether its artifact exists. ``inputs``: identities by stage name."""

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
    needs: dict[str, str] = field(default_factory=dict)
    """Keys by stage name of the stages it needs. ``inputs`` are their identities, which a quarantine changes."""
    label: str = ""
    """What it is called where several variants of a config run at once."""
    open: bool = False
    """Whether images are still to be packed, whose fingerprint will be in the key: plan again when they are."""


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
    needs: tuple[str, ...] = ()
    """Keys of the stages that have to be done before."""


# ---------------------------------------------------------------------------------------------------------------- plan
def plan(
    cfg: "config.Config", here: bool = False, known: dict[str, dict[str, str]] | None = None
) -> list[Planned]:
    """Every stage after the stages it needs, in the config's order otherwise. Shards are known by what is in them, so
    that stages after a pack which is not done are open. ``known``: fingerprints of sources, kept for the next plan, so
    that the same images are meant however long packing takes. Raises DataError where a source cannot be packed."""
    known = {} if known is None else known
    edges = {name: config.needs(stage) for name, stage in cfg.stages.items()}
    planned: dict[str, Planned] = {}
    for name in TopologicalSorter(edges).static_order():
        stage = cfg.stages[name]
        seed = cfg.seed if stage.seed is None else stage.seed
        inputs = {ref: artifact.identity(planned[ref].folder, planned[ref].key) for ref in edges[name]}
        text = f"{cfg.root} {stage.model_dump_json()}"
        if text not in known:
            known[text] = artifact.fingerprint(stage, Path(cfg.root))
        outside = known[text]
        key = artifact.key(stage.kind, stage, seed, inputs, outside)
        folder = artifact.folder(Path(cfg.root), name, key)
        needed = [planned[ref] for ref in edges[name]]
        open_ = any(p.open or (p.kind == "pack" and not p.done) for p in needed)
        done = not open_ and artifact.done(folder, key) is not None
        place = placement(stage, here)
        needs = {ref: planned[ref].key for ref in edges[name]}
        made = Planned(name, stage.kind, stage, seed, key, folder, inputs, outside, place, done, needs, open=open_)
        planned[name] = made
    return list(planned.values())


def placement(stage: Stage, here: bool) -> str:
    """Where a stage runs: as its settings say; auto: a Ray task where ray can be imported, else here. A process of a
    launcher's world runs everything itself."""
    if here or launcher.size() > 1 or stage.place.on == "here":
        return "here"
    if find_spec("ray"):
        return "task" if stage.place.on == "auto" else stage.place.on
    if stage.place.on == "auto":
        return "here"
    raise ConfigError(f"place.on: {stage.place.on} needs Ray, which is not installed; install ray, or add --here")


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


def together(variants: dict[str, list[Planned]]) -> list[Planned]:
    """The stages of several variants of a config, each once: what two of them share is not theirs to be named by."""
    shared = Counter(p.key for planned in variants.values() for p in planned)
    found = {
        p.key: replace(p, label=p.name if shared[p.key] > 1 or not mark else f"{p.name} {mark}")
        for mark, planned in variants.items()
        for p in planned
    }
    return list(found.values())


def job(p: Planned, planned: list[Planned]) -> Job:
    folders = {name: str(next(q.folder for q in planned if q.key == key).resolve()) for name, key in p.needs.items()}
    out = p.folder.resolve()
    facts = {
        "stage": p.name,
        "kind": p.kind,
        "key": p.key,
        "settings": p.settings.model_dump(mode="json", exclude={"place"}),
        "seed": p.seed,
        "inputs": p.inputs,
        "fingerprints": p.outside,
    }
    stop = str(out / artifact.STOP)
    name, needs = p.label or p.name, tuple(p.needs.values())
    return Job(name, p.kind, p.settings, p.seed, folders, str(out), p.key, stop, os.getcwd(), facts, needs)


# ---------------------------------------------------------------------------------------------------------------- work
def work(job: Job, make_world: Callable[..., Any] | None = None, asked: Callable[[], bool] = lambda: False) -> Any:
    """Runs one stage under its key's lock, writes its artifact and returns its metrics. Called by every process of
    the stage's world, which ``make_world(threads, stop)`` joins (`World` by default). ``asked``: whether this process
    was told to stop, beside the job's stop file. An error leaves its traceback in the folder's error.log.
    """
    out = Path(job.out)

    def stop() -> bool:
        return asked() or os.path.exists(job.stop_file)

    def say(text: str) -> None:
        lines.say(text, job.name)

    try:
        if os.path.isdir(job.cwd):
            os.chdir(job.cwd)
        if make_world is None:
            from pipeline.world import World as make_world
        world = make_world(job.settings.threads, stop)
        with artifact.Lock(out, say, stop) if world.main else nullcontext() as lock:
            record = world.share(artifact.done(out, job.key) if world.main else None)
            if record is not None:  # by the process that this one waited for
                return record["metrics"]
            if lock is not None:
                (out / artifact.FAILED).unlink(missing_ok=True)
                if changed := artifact.begin(out):
                    say(f"goes on with other versions than it began with: {changed}")
            stage = importlib.import_module(f"pipeline.stages.{job.kind}")
            inputs = {name: Path(folder) for name, folder in job.inputs.items()}
            metrics = stage.run(job.settings, job.seed, inputs, out, world)
            if lock is not None:
                if not lock.held():
                    raise PipelineError(f"another process took {out} while this one slept; the same command goes on")
                facts = job.facts | {"threads": job.settings.threads, "processes": world.size}
                metrics = artifact.finish(out, facts, metrics)["metrics"]
            return world.share(metrics)
    except Exception as error:
        if not isinstance(error, Stopped):
            log(out, error)
            if not errors.lost(error):
                with suppress(OSError):
                    (out / artifact.FAILED).write_text(str(explained(job, error).code))
        raise


def log(out: Path, error: Exception) -> None:
    """Appends the traceback to the folder's error.log, if the disk takes it."""
    with suppress(OSError), (out / artifact.LOG).open("a") as file:
        traceback.print_exception(error, file=file)


def explained(job: Job, error: Exception) -> PipelineError:
    """An error of a stage as the one line that is shown: a user's as it is, one of files, disk or limits in words, any
    other as a fault of ours with the place of its traceback."""
    if errors.lost(error):
        return ended_with(job, errors.first(error))
    where = shown(Path(job.out))
    said = errors.explained(error, str(where))
    if said is not None:
        text = str(said)
        return type(said)(text if text.startswith(job.name) else f"{job.name}: {text}")
    return PipelineError(f"{job.name}: {errors.fault(error)} (traceback in {where / artifact.LOG})")


def ended_with(job: Job, what: str) -> PipelineError:
    """The error of a rank that another one took with it: with that one's code where it left one, else its machine
    died."""
    try:
        code = int((Path(job.out) / artifact.FAILED).read_text())
    except (OSError, ValueError):
        return ClusterError(f"{job.name}: another rank is gone ({what[:160]}); the same command goes on")
    return errors.of_code(code)(f"{job.name}: another rank failed, which said why")


def shown(path: Path) -> Path:
    """A path as the user would type it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


# ------------------------------------------------------------------------------------------------------------- execute
class Stop:
    """Whether this process was asked to stop: TERM, USR2, INT, or HUP of a terminal that closes, set a flag and
    nothing else, so that a second one does not lose the save; a third INT does not wait for it. ``since``: when, by
    the monotonic clock. What nohup has ignored stays ignored."""

    SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)

    def __init__(self):
        self.asked, self.interrupts, self.before = False, 0, {}
        self.since = time.monotonic()

    def __call__(self) -> bool:
        return self.asked

    def handle(self, number: int, _frame: object) -> None:
        if not self.asked:
            self.asked, self.since = True, time.monotonic()
        self.interrupts += number == signal.SIGINT
        if self.interrupts > 2:
            raise KeyboardInterrupt

    def __enter__(self) -> "Stop":
        heard = [n for n in self.SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
        self.before = {number: signal.signal(number, self.handle) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        # Once asked, a further signal must not kill the process on its way to exit code 75.
        for number, before in self.before.items():
            signal.signal(number, signal.SIG_IGN if self.asked else before)


def execute(
    planned: list[Planned],
    chosen: list[Planned],
    watch: "Watch",
    here: Any,
    cluster: Any = None,
    again: Callable[[], tuple[list[Planned], list[Planned]]] | None = None,
) -> int:
    """Runs what is not done of ``chosen``, each stage once those it needs are done, and returns the exit code.

    Packs are first: ``again`` then plans anew, since what they made is in the keys of the others, and whether the
    shards have what these stages need is judged before the first of them starts. ``here`` runs stages of this process,
    one after another (`placement.here`); ``cluster`` the others, side by side (`placement.ray.Cluster`). After a
    failure or a signal no new stage starts; those in flight finish, or save.
    """
    with Stop() as stop:
        packs = [p for p in chosen if p.kind == "pack"]
        others = [p for p in chosen if p.kind != "pack"]
        for p in packs:
            told(p, watch)
        code = started(planned, packs, stop, watch, [p.label or p.name for p in others]).all(here, cluster)
        if code or not others:
            return code
        try:
            if again is not None and any(p.open for p in others):
                planned, chosen = here.agreed(again)
                others = [p for p in chosen if p.kind != "pack"]
            sufficient(planned, others, watch)
        except PipelineError as error:
            watch.fail(error)
            return error.code
        for p in others:
            told(p, watch)
        done = [replace(p, done=p.done or p.kind == "pack") for p in planned]
        return started(done, others, stop, watch).all(here, cluster)


def started(
    planned: list[Planned], chosen: list[Planned], stop: Stop, watch: "Watch", later: Iterable[str] = ()
) -> "Run":
    jobs = {p.key: job(p, planned) for p in chosen if not p.done}
    away = {p.key for p in chosen if p.place != "here"}
    return Run(jobs, away, {p.key for p in planned if p.done}, stop, watch, later)


def told(p: Planned, watch: "Watch") -> None:
    """Says that a stage is done already, and with which other versions, if it is."""
    if p.done:
        record = artifact.read(p.folder) or {}
        changed = artifact.differences(record.get("versions", {}))
        text = f"done already, {p.folder}" + (f", with {changed}" if changed else "")
        watch.say(text, p.name, "done", folder=str(p.folder))


def sufficient(planned: list[Planned], chosen: list[Planned], watch: "Watch") -> None:
    """Raises DataError where a probe that is to be done could not work on its shards, whatever is trained, and
    ConfigError where a training could not; says what will be otherwise than its reader may think."""
    from pipeline import advice

    by_key = {p.key: p for p in planned}
    for p in chosen:
        data = getattr(p.settings, "data", None)
        if data is not None and not p.done:
            for text in advice.stage(p.name, p.settings, by_key[p.needs[data]].folder):
                watch.say(text, p.label or p.name, "warning")


class Run:
    """The stages of one command, by key, that wait, run and have ended. ``away``: those that a cluster runs;
    ``later``: names of those that will wait for all of these."""

    def __init__(
        self,
        jobs: dict[str, Job],
        away: set[str],
        done: set[str],
        stop: Stop,
        watch: "Watch",
        later: Iterable[str] = (),
    ):
        self.waiting, self.away, self.done, self.stop, self.watch = dict(jobs), away, done, stop, watch
        self.later = list(later)
        self.flying: dict[Any, Job] = {}
        self.codes: list[int] = []

    def all(self, here: Any, cluster: Any) -> int:
        stopping = here.together(self.stop)
        while True:
            halted = stopping() or bool(self.codes)
            able = [j for j in self.waiting.values() if self.done.issuperset(j.needs)]
            ready = [] if halted else able
            for one in [j for j in ready if j.key in self.away]:
                self.launch(one, cluster)
            local = next((j for j in ready if j.key not in self.away), None)
            if local is not None:
                self.begin(local)
                try:
                    self.end(local, here.run_stage(local, self.stop))
                except Exception as error:
                    self.end(local, error)
            elif self.flying:
                self.land(cluster)
            elif not [j for j in ready if j.key in self.waiting]:
                break
        failed = [code for code in self.codes if code != Stopped.code]
        if failed or not (self.codes or self.waiting or (halted and self.later)):
            return failed[0] if failed else 0
        # What a scheduler's grace has to hold: every save, on whatever machine, and the news of it.
        took = time.monotonic() - self.stop.since
        names = [j.name for j in self.waiting.values()] + self.later
        facts: dict[str, Any] = {"seconds": round(took, 3)} if self.stop.asked else {}
        when = f"stopped {took:.1f} s after the signal" if facts else "stopped"
        before = f", before {', '.join(names)}" if names else ""
        self.watch.say(f"{when}{before}; the same command goes on", event="stopped", before=names, **facts)
        return Stopped.code

    def begin(self, one: Job) -> None:
        del self.waiting[one.key]
        Path(one.stop_file).unlink(missing_ok=True)
        self.watch.add(one.name, Path(one.out))

    def launch(self, one: Job, cluster: Any) -> None:
        self.begin(one)
        try:
            self.flying[cluster.submit(one)] = one
        except PipelineError as error:
            self.end(one, error)

    def land(self, cluster: Any) -> None:
        """Waits a little for a task to end; hands a signal on to those that have not."""
        if self.stop():
            for one in self.flying.values():
                with suppress(OSError):
                    Path(one.stop_file).touch()
        ended = cluster.wait(list(self.flying), timeout=0.5)
        if ended is not None:
            self.end(self.flying.pop(ended[0]), ended[1])

    def end(self, one: Job, result: Any) -> None:
        self.watch.remove(one.name)
        if not isinstance(result, Exception):
            self.done.add(one.key)
            self.watch.say(f"done, {shown(Path(one.out))}", one.name, "done", folder=one.out, metrics=result)
            for text in result.get("said", ()) if isinstance(result, dict) else ():
                self.watch.say(text, one.name)
            return
        error = explained(one, result)
        self.codes.append(error.code)
        self.watch.fail(error)
