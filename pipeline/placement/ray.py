"""Runs stages as Ray tasks or on groups of Ray Train workers.

RAY_ADDRESS names the cluster; without it a local cluster starts with the run and ends with it. Data is passed through
files: a task receives settings and folders, and returns metrics.
"""

import json
import logging
import math
import os
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline import errors, launcher, lines, preflight, process, runner
from pipeline.errors import ClusterError, ConfigError, NoProgressError, PipelineError, Stopped, first_line
from pipeline.plan import Job
from pipeline.settings.stage import Place

ENV = {  # read by ray when it is imported
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else every worker would be started by `uv run` again
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a stage that asks for no GPU sees none
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # 60 by default: too short for a cold shared file system
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "1800",
    "RAY_task_oom_retries": "2",  # unlimited by default
}
for _name, _value in ENV.items():
    os.environ.setdefault(_name, _value)
if "RAY_ADDRESS" not in os.environ and "ray" not in sys.modules:
    # A local cluster gets a token of its own; otherwise ray would write one to the home folder, which clusters that
    # are started later would then expect.
    os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)

process.raise_limits()  # here, since this is the first module that a Ray worker imports

import ray  # noqa: E402
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError  # noqa: E402
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402

ATTEMPTS = 3  # of a task whose process dies; of a group of workers, in a row without a new checkpoint
STARTS = 3  # attempts to start a local cluster: ray waits 30 s for its node, which a busy machine may exceed
SOCKET = 107  # bytes that the path of a Unix socket may have (unix(7))
ROOT = str(Path(__file__).parents[2])


class Cluster:
    """A connection to a Ray cluster. Install signal handlers after making one, since ray replaces them. Raises
    ClusterError where the cluster does not answer."""

    def __init__(self) -> None:
        self.address = os.environ.get("RAY_ADDRESS")
        try:
            if self.address:
                self._join(self.address)
            else:
                self._start()
        except PipelineError:
            raise
        except Exception as error:  # ray raises plain Exceptions, too
            limit = None if self.address else errors.explain(error)
            if isinstance(limit, NoProgressError):  # a limit of this machine: other nodes would not help
                raise limit from error
            where = f"RAY_ADDRESS={self.address}" if self.address else "a local one"
            raise ClusterError(
                f"no Ray cluster: {where} does not answer ({first_line(error)}); check that it runs, and that "
                f"RAY_AUTH_MODE and RAY_AUTH_TOKEN here are those it was started with"
            ) from error

    def _join(self, address: str) -> None:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, runtime_env={"env_vars": variables()})
        wait_for_nodes(int(launcher.number("PIPELINE_NODES", 1)), launcher.number("PIPELINE_JOIN_S", 300))

    def _start(self) -> None:
        # Set in the environment, not in runtime_env, which would make the workers that are started ahead unusable.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        os.environ["PYTHONPATH"] = os.pathsep.join([ROOT, *(p for p in paths if p and p != ROOT)])
        for attempt in range(1, STARTS + 1):
            try:
                start_local(short_folder())
                break
            except Exception:
                ray.shutdown()
                if attempt == STARTS:
                    raise
        for _ in range(int(ray.cluster_resources().get("CPU", 1))):
            _warm.remote()

    def submit(self, job: Job) -> Any:
        """Starts a stage and returns its handle. Raises ClusterError where the cluster is too small for it."""
        place, threads = job.settings.place, job.settings.threads
        copies = (place.min_workers or place.workers) if place.on == "workers" else 1
        check_capacity(job.name, need(place, threads), copies)
        if place.on == "workers":
            return _train.remote(job, ENV)
        return _task.options(
            num_cpus=threads, num_gpus=place.gpus, memory=need(place, threads)["memory"], max_retries=ATTEMPTS - 1
        ).remote(job)

    def wait(self, handles: list[Any], timeout: float | None = None) -> tuple[Any, Any] | None:
        """The first handle that is done, with the metrics that its stage returned or the exception that it raised.
        None if none is done within ``timeout`` seconds."""
        done, _ = ray.wait(handles, num_returns=1, timeout=timeout)
        if not done:
            return None
        try:
            return done[0], ray.get(done[0])
        except RayTaskError as error:
            cause = getattr(error, "cause", None)
            if not isinstance(cause, Exception):
                return done[0], error
            cause.__cause__ = error  # its text is the traceback on the worker
            return done[0], cause
        except (WorkerCrashedError, OutOfMemoryError) as error:
            return done[0], repeated_death(first_line(error))
        except RayError as error:
            return done[0], ClusterError(f"the Ray cluster lost the stage: {first_line(error)}; run the command again")

    def node_facts(self, root: Path) -> list[preflight.Facts]:
        """`preflight.facts` of every node. A clock that was read between this process's request and the reply has no
        skew."""
        token, now = preflight.write_token(root), time.time()
        nodes = []
        for node in (n for n in ray.nodes() if n["Alive"]):
            where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            begin = time.time()
            facts = ray.get(_facts.options(scheduling_strategy=where).remote(root, token))
            early, late = min(0.0, facts["clock"] - begin), max(0.0, facts["clock"] - time.time())
            nodes.append(facts | {"who": node["NodeManagerAddress"], "clock": now + early + late})
        (root / token).unlink()
        return nodes

    def close(self) -> None:
        """Disconnects from the cluster; a local one ends."""
        ray.shutdown()


def variables() -> dict[str, str]:
    """The environment of our workers in a cluster of others. Those of a Ray job find the package in its working
    directory, and have the job's own variables, which Ray refuses to be told twice."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "null"))
    given = {"PYTHONPATH"} | job.get("runtime_env", {}).get("env_vars", {}).keys() if job is not None else ()
    return {k: v for k, v in {"OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT}.items() if k not in given}


def start_local(folder: str | None) -> None:
    """Starts a local cluster. ``folder``: for its sockets (None: ray's usual one)."""
    usable = len(os.sched_getaffinity(0))
    ray.init(
        "local",  # not "auto", which would join any cluster on this machine, of any user
        num_cpus=usable if usable < (os.cpu_count() or 1) else None,
        include_dashboard=False,
        _temp_dir=folder,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def short_folder() -> str | None:
    """A folder for the sockets of a local cluster, whose paths may have SOCKET bytes; None: ray's usual folder, which
    is short enough. Raises ConfigError where there is no short folder that can be written to."""
    usual = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    if len(os.fsencode(usual)) <= SOCKET - len("/ray/session_2000-01-01_00-00-00_000000_0000000/sockets/plasma_store"):
        return None
    for folder in ("/tmp", "/var/tmp", "/dev/shm"):
        if os.access(folder, os.W_OK | os.X_OK):
            lines.say(f"{usual} is too long a folder for Ray's sockets: {folder}/ray-{os.getuid()} in its place")
            return f"{folder}/ray-{os.getuid()}"
    raise ConfigError(f"{usual} is too long a folder for Ray's sockets: give a shorter one by RAY_TMPDIR, or --here")


def need(place: Place, threads: int) -> dict[str, float]:
    """The resources of a task, or of each worker: CPUs, GPUs, bytes of memory."""
    return {"CPU": threads, "GPU": place.gpus, "memory": int(place.memory_gb * 2**30)}


def wait_for_nodes(nodes: int, limit: float) -> None:
    """Waits until ``nodes`` nodes are alive, since a Slurm script starts the cluster and its driver at the same time.
    Raises ClusterError where they are not after ``limit`` seconds.
    """
    end = time.monotonic() + limit
    while (alive := sum(node["Alive"] for node in ray.nodes())) < nodes:
        if time.monotonic() > end:
            raise ClusterError(
                f"{alive} of {nodes} Ray nodes came together within {limit:g} s: see the log of `ray start` on the "
                f"others, ask fewer nodes, or give them longer by PIPELINE_JOIN_S"
            )
        time.sleep(0.25)


def check_capacity(name: str, ask: dict[str, float], copies: int) -> None:
    """Raises ClusterError unless the nodes, if nothing else ran on them, have room for ``copies`` of the resources
    ``ask``. Ray itself would wait for ever."""
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    room = sum(min(int(node.get(k, 0) // v) for k, v in ask.items() if v) for node in nodes)
    if room < copies:
        sizes = "; ".join(f"{n.get('CPU', 0):g} CPU, {n.get('GPU', 0):g} GPU" for n in nodes)
        raise ClusterError(
            f"{name} asks {copies} x ({ask['CPU']:g} CPU, {ask['GPU']:g} GPU, {ask['memory'] / 2**30:g} GB) and the "
            f"cluster's {len(nodes)} node(s) have {sizes}: lower {name}.threads, {name}.place.workers or "
            f"{name}.place.gpus, or name a larger cluster by RAY_ADDRESS"
        )


def repeated_death(how: str) -> NoProgressError:
    return NoProgressError(
        f"the stage's process died {ATTEMPTS} times ({how}): most often for want of memory; lower its batch, or ask "
        f"more by place.memory_gb"
    )


def checkpoints(job: Job) -> list[str]:
    return sorted(path.name for path in (Path(job.out) / "checkpoints").glob("[0-9]*"))


def worker_loss(failures: list[Exception]) -> Exception:
    """The error that says that a worker of a group was lost, after which a new group is started.

    Raises the stage's own error, if a worker has one: a new group would fail in the same way.
    """
    for failure in failures:
        if isinstance(failure, PipelineError):
            raise failure
    if losses := [f for f in failures if type(f).__module__.startswith("ray.")]:
        return getattr(losses[0], "health_check_failure", losses[0])
    if faults := [f for f in failures if not errors.peer_lost(f)]:
        # A RuntimeError often only follows from another rank's error.
        raise min(faults, key=lambda f: isinstance(f, RuntimeError))
    return failures[0]


def no_signal() -> bool:
    """Never true: a Ray worker gets no signals, and is asked to stop by the job's stop file."""
    return False


class Regroup:
    """Says whether this worker's group should save and stop, so that a new group resumes.

    It should when Ray Train announces that a machine of the group will be taken away, and when a group of fewer than
    ``workers`` could have one more. Ray's public function for the first waits for all workers at each call, though
    these agree by themselves, and its elastic scaling ends workers without letting them save.
    """

    def __init__(self, job: Job):
        self.place, self.last_look = job.settings.place, time.monotonic()
        self.ask = need(self.place, job.settings.threads)
        self.every = launcher.number("PIPELINE_GROW_S", 60)

    def __call__(self) -> bool:
        from ray.train.v2._internal.execution.context import get_train_context

        context = get_train_context()
        if context.preemption_context.preemption_info is not None:
            return True
        small = self.place.min_workers and context.get_world_size() < self.place.workers
        if not small or context.get_world_rank() or time.monotonic() - self.last_look < self.every:
            return False
        self.last_look = time.monotonic()
        return has_room(self.ask)


def has_room(ask: dict[str, float]) -> bool:
    """Whether a node that is not about to be taken away has these resources free."""
    from ray._private.state import available_resources_per_node, state

    draining = state.get_draining_nodes()
    free = [resources for node, resources in available_resources_per_node().items() if node not in draining]
    return any(all(resources.get(k, 0) >= v for k, v in ask.items()) for resources in free)


@ray.remote(num_cpus=1)
def _warm() -> None:
    """Imports modules that take seconds, in all workers at the same time, before the first stage needs them."""
    import accelerate  # noqa: F401
    import torch  # noqa: F401


@ray.remote(num_cpus=0)
def _facts(root: Path, token: str) -> preflight.Facts:
    return preflight.facts(root, token)


@ray.remote(num_cpus=1)
def _task(job: Job) -> Any:
    return runner.work_on_ranks(job, no_signal)


@ray.remote(num_cpus=0, max_retries=0)
def _train(job: Job, env: dict[str, str]) -> Any:
    """Runs a stage on a group of workers. If one of its processes dies, or all have saved because a machine will be
    taken away or another is free, a new group resumes."""
    os.environ.update(env)
    records = Path(job.out).parent / ".ray"
    tries, last, how = 0, checkpoints(job), ""
    try:
        while tries < ATTEMPTS:
            result, error = train_group(job, records)
            if error is None:
                return result
            how = first_line(error) if not isinstance(error, Stopped) else how
            tries = tries + 1 if last == (last := checkpoints(job)) else 1
        raise repeated_death(how)
    finally:
        shutil.rmtree(records / Path(job.out).name, ignore_errors=True)


def train_group(job: Job, records: Path) -> tuple[Any, Exception | None]:
    """Runs a stage on one group of workers. Returns its metrics and None, or None and the reason why a new group must
    resume: the loss of a worker, or Stopped where all have saved. ``records``: a folder for Ray Train's own files."""
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

    try:
        trainer = TorchTrainer(lambda: runner.work_on_ranks(job, Regroup(job)), **trainer_settings(job, records))
        return trainer.fit().return_value, None
    except WorkerGroupError as error:
        failures = list(error.worker_failures.values())
        stopped = next((failure for failure in failures if isinstance(failure, Stopped)), None)
        if stopped is not None and not os.path.exists(job.stop_file):
            return None, stopped
        return None, worker_loss(failures)
    except TrainingFailedError as error:
        raise ClusterError(f"the workers of {job.name} did not start: {first_line(error)}") from None


def trainer_settings(job: Job, records: Path) -> dict[str, Any]:
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    place = job.settings.place
    return {
        "scaling_config": ScalingConfig(
            num_workers=(place.min_workers, place.workers) if place.min_workers else place.workers,
            use_gpu=place.gpus > 0,
            elastic_resize_monitor_interval_s=math.inf,  # it would end the workers without a save
            resources_per_worker={k: v for k, v in need(place, job.settings.threads).items() if v},
        ),
        "run_config": RunConfig(
            name=Path(job.out).name,
            storage_path=str(records),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=2),
        ),
    }
