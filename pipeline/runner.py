"""Runs stages, each once, and writes their artifacts.

    work(job, make_world)   runs one stage in this process
    work_on_ranks(job, ..)  runs one stage in this process, or on every rank that a launcher started
    execute(stages, ...)    runs the unfinished stages of a plan; a cluster runs independent stages at the same time
"""

import importlib
import os
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import artifact, errors, files, launcher, lines, plan
from pipeline.errors import ClusterError, ConfigError, PipelineError, Stopped
from pipeline.plan import Job, PlannedStage
from pipeline.settings import imports
from pipeline.settings.stages import Stage
from pipeline.signals import Stop

if TYPE_CHECKING:
    from pipeline.display import Display


# ---------------------------------------------------------------------------------------------------------------- work
def work(
    job: Job, make_world: Callable[..., Any] | None = None, stop_signal: Callable[[], bool] = lambda: False
) -> Any:
    """Runs one stage under its key's lock, writes its artifact and returns its metrics.

    Every process of the stage's world calls this; ``make_world(threads, stop)`` joins that world (`World` by default).
    ``stop_signal`` says whether this process was signalled to stop; the job's stop file has the same effect. The
    traceback of an error is written to the folder's error.log, and the error raised.
    """
    out = Path(job.out)

    def stop() -> bool:
        return stop_signal() or os.path.exists(job.stop_file)

    imports.remember(job.files)
    try:
        if os.path.isdir(job.cwd):
            os.chdir(job.cwd)
        world = (make_world or default_world())(job.settings.threads, stop)
        with artifact.Lock(out, lambda text: lines.say(text, job.name), stop) if world.main else nullcontext() as lock:
            record = world.share(artifact.done(out, job.key) if world.main else None)
            if record is not None:  # another process made it, while this one waited for the lock
                return record["metrics"]
            return world.share(run_stage(job, world, lock))
    except Exception as error:
        if not isinstance(error, Stopped):
            record_failure(job, error)
        if errors.user_line(error):  # the traceback, which says so, does not reach another process
            raise explain(job, error) from error
        raise


def work_on_ranks(job: Job, stop_signal: Callable[[], bool]) -> Any:
    """Runs one stage and returns its metrics on every rank. A stage that cannot use several ranks runs on the first
    one. ``stop_signal`` says whether this process was signalled to stop."""
    if launcher.size() == 1 or job.settings.shared:
        return work(job, stop_signal=stop_signal)
    from pipeline.world import World

    def on_first() -> Any:
        try:
            return work(job, World.single, stop_signal)
        except Exception as error:
            raise explain(job, error) from error

    return World(1).from_first(on_first)


def default_world() -> Callable[..., Any]:
    from pipeline.world import World

    return World


def run_stage(job: Job, world: Any, lock: artifact.Lock | None) -> Any:
    """Calls the function of the stage's kind. The rank that holds the lock writes the artifact. Returns the
    metrics."""
    out = Path(job.out)
    if lock is not None:
        (out / artifact.FAILED).unlink(missing_ok=True)
        if changes := artifact.begin(out, job.facts):
            lines.say(f"goes on with other versions than it began with: {changes}", job.name)
        for file in job.files:
            files.write(out / imports.COPIES / f"{file.name}.py", file.text)
    stage = importlib.import_module(f"pipeline.stages.{job.kind}")
    inputs = {name: Path(folder) for name, folder in job.inputs.items()}
    artifact.check_weights(job.settings, job.facts.get("fingerprints", {}))
    metrics = stage.run(job.settings, job.seed, inputs, out, world)
    if lock is None:
        return None
    if not lock.held():
        raise PipelineError(f"another process took {out} while this one slept; the same command goes on")
    facts = job.facts | {"threads": job.settings.threads, "processes": world.size}
    return artifact.finish(out, facts, metrics)["metrics"]


# -------------------------------------------------------------------------------------------------------------- errors
def record_failure(job: Job, error: Exception) -> None:
    """Writes to the stage's folder, if the disk allows, the traceback and, for the other ranks, the exit code."""
    out = Path(job.out)
    with suppress(OSError), (out / artifact.LOG).open("a") as file:
        traceback.print_exception(error, file=file)
    if not errors.peer_lost(error):
        with suppress(OSError):
            (out / artifact.FAILED).write_text(str(explain(job, error).code))


def explain(job: Job, error: Exception) -> PipelineError:
    """Turns an error of a stage into one with a single line for the user. A PipelineError stays; for errors of files,
    disk or limits the line says what to do; any other is called a fault of the program, or of the user's own file,
    with its traceback's path."""
    if errors.peer_lost(error):
        return peer_error(job, errors.first_line(error))
    where = relative(Path(job.out))
    line = errors.explain(error, str(where))
    at = f" (traceback in {where / artifact.LOG})"
    if line is not None:
        text = str(line) + (at if line is not error and isinstance(line, errors.UserError) else "")
        return type(line)(text if text.startswith(job.name) else f"{job.name}: {text}")
    if paths := ", ".join(file.path for file in imports.used(job.settings)):
        what = f"{type(error).__name__}: {errors.first_line(error)}"
        return errors.UserError(f"{job.name}: {what}, by what {paths} gives, or a fault of this program{at}")
    return PipelineError(f"{job.name}: {errors.fault(error)}{at}")


def peer_error(job: Job, what: str) -> PipelineError:
    """The error of a rank that lost the connection to another. If a failed rank has written its exit code, this rank
    ends with the same code; otherwise the other's machine is taken to be lost."""
    try:
        code = int((Path(job.out) / artifact.FAILED).read_text())
    except (OSError, ValueError):
        return ClusterError(f"{job.name}: another rank is gone ({what[:160]}); the same command goes on")
    return errors.of_code(code)(f"{job.name}: another rank failed, which said why")


def relative(path: Path) -> Path:
    """A path as the user would type it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


# ------------------------------------------------------------------------------------------------------------- execute
def execute(
    stages: list[PlannedStage],
    selection: list[PlannedStage],
    display: "Display",
    here: Any,
    cluster: Any = None,
    replan: Callable[[], tuple[list[PlannedStage], list[PlannedStage]]] | None = None,
) -> int:
    """Runs the unfinished stages of ``selection``, each after those that it needs, and returns the exit code.

    Packs run first. The keys of the other stages contain their fingerprints, so ``replan`` then plans again, and the
    stages' requirements on the shards are checked before any of them starts. ``here`` (the module `placement.here`)
    runs stages in this process, one after another; ``cluster`` (`placement.ray.Cluster`) runs the others concurrently.
    After a failure no new stage starts and the running ones finish; after a signal they save and stop.
    """
    with Stop() as stop:
        try:
            check_shares(selection)
        except ConfigError as error:
            display.fail(error)
            return error.code
        packs, others = by_order(selection)
        report_done(packs, display)
        later = [p.label or p.name for p in others]
        code = Schedule(stages, packs, stop, display, later).run(here, cluster)
        if code or not others:
            return code
        try:
            if replan is not None and any(p.provisional for p in others):
                stages, selection = here.from_first_rank(replan)
                _, others = by_order(selection)
            check_shards(stages, others, display)
        except PipelineError as error:
            display.fail(error)
            return error.code
        report_done(others, display)
        packed = [replace(p, done=p.done or p.packs) for p in stages]
        return Schedule(packed, others, stop, display).run(here, cluster)


def check_shares(selection: list[PlannedStage]) -> None:
    """Raises ConfigError where a batch does not divide over the ranks that a launcher started."""
    ranks = range(launcher.size(), launcher.size() + 1)
    shared = [p for p in selection if p.settings.shared and not p.done]
    if mistakes := [f"{p.name}.{key}: {text}" for p in shared for key, text in p.settings.unequal_shares(ranks)]:
        raise ConfigError("\n".join(mistakes))


def by_order(selection: list[PlannedStage]) -> tuple[list[PlannedStage], list[PlannedStage]]:
    """Divides stages into packs and all others."""
    return [p for p in selection if p.packs], [p for p in selection if not p.packs]


def report_done(selection: list[PlannedStage], display: "Display") -> None:
    """Prints a line for each stage that is done already, with the package versions that have changed since."""
    for p in selection:
        if p.done:
            record = artifact.read(p.folder) or {}
            changes = artifact.differences(record.get("versions", {}))
            idle = artifact.idle_changes(p.settings, record)
            text = f"done already, {p.folder}" + (f", with {changes}" if changes else "")
            text += f"; {idle} would change no result" if idle else ""
            display.say(text, p.name, "done", folder=str(p.folder))


def check_shards(stages: list[PlannedStage], selection: list[PlannedStage], display: "Display") -> None:
    """Checks the unfinished stages against their shards and prints the lines of `advice.stage`. Raises DataError where
    a probe cannot run on its shards, ConfigError where a training cannot."""
    from pipeline import advice

    by_key = {p.key: p for p in stages}
    for p in selection:
        data = getattr(p.settings, "data", None)
        if data is not None and not p.done:
            for text in advice.stage(p.name, p.settings, by_key[p.needs[data]].folder):
                display.say(text, p.label or p.name, "warning")


def ending(settings: Stage, metrics: Any) -> str:
    """What a finished stage has come to, as the end of a line."""
    numbers = lines.numbers(settings.outcome(metrics or {}))
    return "".join(f", {text}" for text in (settings.protocol, numbers) if text and numbers)


class Schedule:
    """Runs the stages of one command in the order of their needs. ``waiting``, ``tasks`` and ``done`` hold those that
    have not started, run on the cluster and are finished. ``later``: names of the stages that follow all of these, for
    the line at a stop. ``display``: where progress is shown."""

    def __init__(
        self,
        stages: list[PlannedStage],
        selection: list[PlannedStage],
        stop: Stop,
        display: "Display",
        later: Iterable[str] = (),
    ):
        self.waiting = {p.key: plan.job(p, stages) for p in selection if not p.done}
        self.remote = {p.key for p in selection if p.place != "here"}
        """Keys of the stages that the cluster runs."""
        self.done = {p.key for p in stages if p.done}
        self.stop, self.display, self.later = stop, display, list(later)
        self.tasks: dict[Any, Job] = {}
        """The jobs that run on the cluster now, by the cluster's handle."""
        self.codes: list[int] = []

    def run(self, here: Any, cluster: Any) -> int:
        """Runs all stages, and returns the exit code."""
        stopping = here.any_rank_stopping(self.stop)
        while True:
            halted = stopping() or bool(self.codes)
            ready = [] if halted else [j for j in self.waiting.values() if self.done.issuperset(j.needs)]
            for task in [j for j in ready if j.key in self.remote]:
                self.submit(task, cluster)
            local = next((j for j in ready if j.key not in self.remote), None)
            if local is not None:
                self.run_here(local)
            elif self.tasks:
                self.wait(cluster)
            else:
                return self.exit_code(halted)

    def begin(self, job: Job) -> None:
        del self.waiting[job.key]
        Path(job.stop_file).unlink(missing_ok=True)
        self.display.add(job.name, Path(job.out))

    def run_here(self, job: Job) -> None:
        self.begin(job)
        try:
            self.end(job, work_on_ranks(job, self.stop))
        except Exception as error:
            self.end(job, error)

    def submit(self, job: Job, cluster: Any) -> None:
        self.begin(job)
        try:
            self.tasks[cluster.submit(job)] = job
        except PipelineError as error:
            self.end(job, error)

    def wait(self, cluster: Any) -> None:
        """Waits half a second for a task to end. After a signal it asks the running tasks to stop."""
        if self.stop():
            for job in self.tasks.values():
                with suppress(OSError):
                    Path(job.stop_file).touch()
        result = cluster.wait(list(self.tasks), timeout=0.5)
        if result is not None:
            self.end(self.tasks.pop(result[0]), result[1])

    def end(self, job: Job, result: Any) -> None:
        """Records and shows a stage's metrics, or the error that it ended with."""
        self.display.remove(job.name)
        if isinstance(result, Exception):
            error = explain(job, result)
            self.codes.append(error.code)
            self.display.fail(error)
            return
        self.done.add(job.key)
        facts = {"folder": job.out, "metrics": result, "outcome": job.settings.outcome(result or {})}
        self.display.say(f"done, {relative(Path(job.out))}{ending(job.settings, result)}", job.name, "done", **facts)
        for text in result.get("said", ()) if isinstance(result, dict) else ():
            self.display.say(text, job.name)

    def exit_code(self, halted: bool) -> int:
        failures = [code for code in self.codes if code != Stopped.code]
        if failures:
            return failures[0]
        if self.codes or self.waiting or (halted and self.later):
            self.report_stop()
            return Stopped.code
        return 0

    def report_stop(self) -> None:
        """Prints before which stages the run stopped, and the seconds since the signal, which must be less than the
        scheduler's grace period before it kills."""
        seconds = time.monotonic() - self.stop.since
        names = [j.name for j in self.waiting.values()] + self.later
        facts: dict[str, Any] = {"seconds": round(seconds, 3)} if self.stop.requested else {}
        when = f"stopped {seconds:.1f} s after the signal" if facts else "stopped"
        before = f", before {', '.join(names)}" if names else ""
        self.display.say(f"{when}{before}; the same command goes on", event="stopped", before=names, **facts)
