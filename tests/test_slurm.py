"""The job scripts on a real Slurm of two nodes on this machine; as root, each node has its own network and processes.

Skipped where Slurm is not installed. Every run ends in the losses and bytes of one undisturbed run on two ranks.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from pipeline.errors import NoProgressError
from pipeline.placement.slurm import first_host, guard_requeue
from tests import small
from tests.artifacts import differences
from tests.processes import frozen, halted, pending, send, started_with, until

pytestmark = pytest.mark.cluster
MINI = small.ROOT / "tests/slurm/mini_slurm.sh"
TRAIN = ["--only", "moco"]
ALONE = os.geteuid() == 0
"""Whether nodes have their own network and processes."""


class Slurm:
    """A cluster in a folder of its own, and the few commands that the tests give it."""

    def __init__(self, folder: Path):
        number = os.getpid() % 200
        self.conf = f"{folder}/etc/slurm.conf"
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "RAY_"))} | {
            "MINI_SLURM_DIR": str(folder),
            "MINI_SLURM_NETNS": "1" if ALONE else "0",
            "MINI_SLURM_NET": f"10.78.{number}",
            "MINI_SLURM_PORT": str(17000 + 10 * number),
            "MINI_SLURM_CPUS": "4",  # more than there are: two jobs and a neighbour fit a node
            "SLURM_CONF": self.conf,
            "ACCELERATE_USE_CPU": "true",
            "RAY_worker_niceness": "0",  # else 15: slow beside other tests
        }

    def bed(self, *words: str) -> subprocess.CompletedProcess:
        return subprocess.run([str(MINI), *words], env=self.env, capture_output=True, text=True)

    def __call__(self, *words: str) -> str:
        done = subprocess.run(words, env=self.env, cwd=small.ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def submit(self, script: str, config: Path, *words: str, options: str = "") -> "Submitted":
        name = "%A_%a" if "--array" in options else "%j"
        log = f"--output={config.parent}/{name}.out"
        told = self("sbatch", "--parsable", log, "-t", "10", *options.split(), f"slurm/{script}", str(config), *words)
        return Submitted(self, told, config.parent)


class Submitted:
    def __init__(self, slurm: Slurm, number: str, folder: Path):
        self.slurm, self.number, self.log = slurm, number, folder / f"{number}.out"

    def fact(self, name: str) -> str:
        told = self.slurm("scontrol", "-o", "show", "job", self.number)
        return re.search(rf"\b{name}=(\S*)", told)[1]  # type: ignore[index]

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def ended(self, code: int = 0) -> None:
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
        until(lambda: self.fact("JobState") in over, say=self.said)
        assert self.fact("ExitCode") == f"{code}:0", self.said()

    def again(self, count: int) -> None:
        """Waits until the job runs for the ``count``-th time after the first."""
        until(lambda: self.fact("Restarts") == str(count) and self.fact("JobState") == "RUNNING", 200, self.said)

    def minutes(self) -> int:
        """How long it has run, in whole minutes."""
        hours, minutes, _ = self.fact("RunTime").split(":")
        return 60 * int(hours) + int(minutes)

    def limit(self, minutes: int) -> None:
        self.slurm("scontrol", "update", f"JobId={self.number}", f"TimeLimit={minutes}")

    def ranks(self) -> list[int]:
        job, _, task = self.number.partition("_")
        own = {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": task} if task else {"SLURM_JOB_ID": job}
        env = {"SLURM_CONF": self.slurm.conf} | own
        return [p for p, line in started_with(**env).items() if re.match(r"\S*python\S* jobs/run.py --here", line)]

    def asked(self, root: Path, ask, at: int = small.LOG) -> None:
        """Has the ranks asked to stop at a known step: they are frozen until the signal waits for each, or Slurm has
        them go on, as it does where it preempts."""
        until(lambda: small.step(root) >= at, say=self.said)
        with frozen(ranks := self.ranks()):
            ask()
            until(lambda: all(pending(r, signal.SIGUSR2) or not halted(r) for r in ranks), 100, self.said)

    def preempt(self) -> None:
        """Has somebody of more weight ask for all nodes, for a moment."""
        self.slurm("sbatch", "-p", "high", "-N2", "-c4", "--mem=100", "-o", "/dev/null", "--wrap", "true")


@pytest.fixture(scope="module")
def slurm():
    folder = tempfile.mkdtemp(prefix="sl", dir="/tmp")  # short: unix sockets allow 100 characters
    cluster = Slurm(Path(folder))
    started = cluster.bed("start", "2")
    if started.returncode == 77:
        pytest.skip("Slurm is not installed: apt-get install slurmctld slurmd slurm-client munge")
    assert started.returncode == 0, started.stderr
    yield cluster
    cluster.bed("stop")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The run folder of the training on two ranks that nothing disturbs."""
    root = tmp_path_factory.mktemp("whole") / "runs"
    small.here(small.write(root), *TRAIN, ranks=2)
    return root


def same(whole: Path, root: Path) -> None:
    assert small.losses(whole) == small.losses(root)
    assert small.apart(whole, root) == []


@pytest.mark.slow
def test_ranks_save_before_the_time_limit_and_when_preempted_and_go_on(slurm, whole, tmp_path):
    """The limit is lowered while the job trains, so that the signal, 120 s before it, is due."""
    config = small.write(root := tmp_path / "runs")
    job = slurm.submit("accelerate.sbatch", config, *TRAIN, options="-p low")
    job.asked(root, lambda: job.limit(job.minutes() + 2))
    until(lambda: job.fact("Restarts") == "1", 60, job.said)
    job.limit(10)
    job.asked(root, job.preempt, at=small.step(root) + 1)
    until(lambda: job.fact("Restarts") == "2", 120, job.said)
    job.ended()
    assert job.said().count("saved at step") == 2, job.said()
    same(whole, root)


@pytest.mark.slow
def test_a_ray_cluster_of_two_nodes_saves_before_the_limit_and_when_preempted_and_goes_on(slurm, whole, tmp_path):
    """One CPU a node, so that the two workers of Ray Train need both."""
    config = small.write(root := tmp_path / "runs")
    words = ["moco.place={on: workers, workers: 2}", *TRAIN]
    job = slurm.submit("ray.sbatch", config, *words, options="-c1 -p low")
    for count, ask in enumerate((lambda: job.limit(job.minutes() + 2), job.preempt), 1):
        before = small.step(root)
        until(lambda before=before: small.step(root) > before and small.trainer(root), say=job.said)
        out = small.only(root, "moco-*")
        with frozen(small.trainer(root)):
            ask()
            until((out / "stop").exists, 120, job.said)
        until(lambda count=count: job.fact("Restarts") == str(count), 120, job.said)
        until(lambda: job.fact("JobState") in ("PENDING", "RUNNING"), 120, job.said)
        job.limit(10)
    job.ended()
    assert job.said().count("saved at step") == 2, job.said()
    same(whole, root)


# -------------------------------------------------------------------------------------------------------------- faults
@pytest.mark.slow
def test_other_ranks_across_requeues_continue_the_curve(slurm, tmp_path):
    """1 -> 2 -> 1 ranks, in float64: the losses of one rank that nothing disturbs."""
    exact = ["moco.precision=fp64", *TRAIN]
    small.here(small.write(tmp_path / "whole"), *exact)
    config = small.write(root := tmp_path / "runs")
    job = slurm.submit("accelerate.sbatch", config, *exact, options="-N1")
    for count, nodes in ((1, 2), (2, 1)):
        job.asked(root, lambda: slurm("scancel", "--batch", "--signal=USR1", job.number), at=30 * count)
        until(lambda: job.fact("JobState") == "PENDING", 120, job.said)
        for change in ("NumNodes=1-2", f"NumTasks={nodes}", f"NumNodes={nodes}-{nodes}"):  # in Slurm's order
            slurm("scontrol", "update", f"JobId={job.number}", change)
        job.again(count)
    job.ended()
    assert job.said().count("saved at step") == 2
    small.near(tmp_path / "whole", root)


@pytest.mark.slow
@pytest.mark.skipif(not ALONE, reason="nodes on one network cannot be cut off: run as root")
def test_a_node_cut_off_for_a_while_is_waited_for(slurm, whole, tmp_path):
    config = small.write(root := tmp_path / "runs")
    job = slurm.submit("accelerate.sbatch", config, *TRAIN)
    until(lambda: small.step(root) >= small.LOG, say=job.said)
    with frozen(job.ranks()):
        slurm.bed("partition", "n2")
    time.sleep(20)
    slurm.bed("heal", "n2")
    job.ended()
    assert job.fact("Restarts") == "0"
    same(whole, root)


@pytest.mark.slow
def test_a_job_goes_on_elsewhere_when_its_node_dies(slurm, tmp_path):
    config = small.write(root := tmp_path / "runs")
    longer = [*TRAIN, "moco.epochs=60"]  # than it takes to strike
    job = slurm.submit("accelerate.sbatch", config, "moco.save_epochs=1", *longer)
    until(lambda: (small.step(root)) >= 30, say=job.said)
    slurm.bed("kill-node", "n2")
    until(lambda: job.fact("Restarts") == "1", 120, job.said)
    assert slurm.bed("start-node", "n2").returncode == 0
    job.ended()
    small.here(small.write(whole := tmp_path / "whole"), *longer, ranks=2)
    same(whole, root)


@pytest.mark.slow
def test_a_class_of_a_users_file_is_trained_on_two_nodes(slurm, tmp_path):
    slurm.submit("accelerate.sbatch", small.write_own(root := tmp_path / "runs"), *TRAIN).ended()
    small.here(small.write_own(whole := tmp_path / "whole"), *TRAIN, ranks=2)
    same(whole, root)


@pytest.mark.slow
def test_of_an_array_one_task_requeues(slurm, tmp_path):
    config = small.write(root := tmp_path / "runs")
    jobs = slurm.submit("sweep.sbatch", config, *TRAIN, options="--array=0-1")
    tasks = [Submitted(slurm, f"{jobs.number}_{i}", tmp_path) for i in (0, 1)]
    until(lambda: tasks[0].ranks() and small.step(root) >= small.LOG, say=tasks[0].said)
    with frozen(ranks := tasks[0].ranks()):
        slurm("scancel", "--batch", "--signal=USR1", tasks[0].number)
        until(lambda: all(pending(rank, signal.SIGUSR2) for rank in ranks), 120)
    until(lambda: tasks[0].fact("Restarts") == "1", 120, tasks[0].said)
    for task in tasks:
        task.ended()
    assert [task.fact("Restarts") for task in tasks] == ["1", "0"]
    assert sorted(json.loads(p.read_text())["seed"] for p in root.glob("moco-*/artifact.json")) == [0, 1]


@pytest.mark.slow
def test_two_jobs_and_a_ray_of_somebody_else_share_a_node(slurm, tmp_path):
    """None of them ends what is not its own."""
    ray = Path(sys.executable).parent / "ray"
    foreign = f"HOME={tmp_path} exec {ray} start --head --port=6379 --include-dashboard=false --num-cpus=1 --block"
    options = ["-w", "n1", "-c1", "--mem=500", "-t", "10"]
    neighbour = slurm("sbatch", "--parsable", *options, f"--output={tmp_path}/foreign.out", "--wrap", foreign)
    roots = [tmp_path / "one", tmp_path / "two"]
    jobs = [
        slurm.submit("ray.sbatch", small.write(root), "--only", "shards", options="-N1 -c1 -w n1 --mem=500")
        for root in roots
    ]
    for job in jobs:
        job.ended()
    assert Submitted(slurm, neighbour, tmp_path).fact("JobState") == "RUNNING"
    slurm("scancel", neighbour)
    assert differences(*roots) == []


# ---------------------------------------------------------------------------------------------------------- exit codes
@pytest.mark.slow
def test_the_true_exit_code_arrives(slurm, tmp_path):
    """All jobs at once: what cannot be saved by trying again ends with its own code; 69 and 75 do where the job may
    not be requeued, or has no address to start from."""
    (empty := tmp_path / "empty").mkdir()
    words = {
        2: ["moco.epoch=3"],
        65: [f"shards.source=folder:{empty}"],
        70: ["moco.optimiser={kind: sgd, lr: 1.0e+30, reference_batch: 0}", *TRAIN],
    }
    jobs = {
        code: slurm.submit("accelerate.sbatch", small.write(tmp_path / str(code)), *changes, options="-N1 -c1")
        for code, changes in words.items()
    }
    loopback = "-N2 -c1 --export=ALL,PIPELINE_HEAD_IP=127.0.0.1"
    deaf = slurm.submit("accelerate.sbatch", small.write(tmp_path / "69"), *TRAIN, options=loopback)
    for code, job in jobs.items():
        job.ended(code)
    deaf.ended(69)
    assert "set PIPELINE_HEAD_IP" in deaf.said()

    roots = [tmp_path / "75", tmp_path / "killed"]
    endless = ["moco.steps=1000000", *TRAIN]
    once, killed = (
        slurm.submit("accelerate.sbatch", small.write(r), *endless, options="-N1 -c1 --no-requeue") for r in roots
    )
    once.asked(roots[0], lambda: slurm("scancel", "--batch", "--signal=USR1", once.number))
    until(lambda: small.step(roots[1]) >= small.LOG, say=killed.said)
    send(killed.ranks(), signal.SIGKILL)
    once.ended(75)
    assert "saved at step" in once.said()
    killed.ended(137)


# ------------------------------------------------------------------------------------------------------------ the rest
def test_a_job_that_gets_nowhere_is_not_requeued_for_ever(tmp_path):
    """Twice in a row at the same place, and the guard answers 70; every step forward releases it."""
    kept = tmp_path / "moco-00000000/checkpoints"
    for step in (10, 20):
        (kept / f"{step:08d}").mkdir(parents=True)
        guard_requeue(tmp_path, "7")
    guard_requeue(tmp_path, "7")
    with pytest.raises(NoProgressError, match="00000020"):
        guard_requeue(tmp_path, "7")
    guard_requeue(tmp_path, "8")


@pytest.mark.parametrize(
    ("nodes", "first"), [("n1", "n1"), ("gpu[07-09,12],login1", "gpu07"), ("a-[1,3]-x", "a-1-x"), ("n1,n2", "n1")]
)
def test_the_first_host_of_a_list(nodes, first):
    assert first_host(nodes) == first
