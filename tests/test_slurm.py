"""The job scripts on a real Slurm of two nodes on this machine; as root, each node has its own network and processes.

Skipped where Slurm is not installed. Every run ends in the losses and bytes of one undisturbed run on two ranks.
"""

import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from pipeline.errors import NoProgressError
from pipeline.placement.slurm import brake, first_host
from tests import small
from tests.artifacts import differences
from tests.processes import frozen, pending, started_with, until

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
        env = {"SLURM_CONF": self.slurm.conf, "SLURM_JOB_ID": self.number}
        return [p for p, line in started_with(**env).items() if re.match(r"\S*python\S* jobs/run.py --here", line)]

    def asked(self, root: Path, ask, at: int = small.LOG) -> None:
        """Has the ranks asked to stop at a known step: they are frozen until the signal waits for each."""
        until(lambda: small.step(root) >= at, say=self.said)
        with frozen(ranks := self.ranks()):
            ask()
            until(lambda: all(pending(rank, signal.SIGUSR2) for rank in ranks), 100, self.said)


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
    assert [name for name in differences(whole, root) if not name.startswith(".slurm-")] == []  # the brake's note


def test_ranks_save_before_the_time_limit_and_go_on(slurm, whole, tmp_path):
    """The limit is lowered while the job trains, so that the signal, 120 s before it, is due."""
    config = small.write(root := tmp_path / "runs")
    job = slurm.submit("accelerate.sbatch", config, *TRAIN)
    job.asked(root, lambda: job.limit(job.minutes() + 2))
    until(lambda: job.fact("Restarts") == "1", 60, job.said)
    job.limit(10)
    job.ended()
    assert job.said().count("saved at step") == 1, job.said()
    same(whole, root)


def test_a_job_that_gets_nowhere_is_not_requeued_for_ever(tmp_path):
    """Twice in a row at the same place, and the brake answers 70; every step forward releases it."""
    kept = tmp_path / "moco-00000000/checkpoints"
    for step in (10, 20):
        (kept / f"{step:08d}").mkdir(parents=True)
        brake(tmp_path, "7")
    brake(tmp_path, "7")
    with pytest.raises(NoProgressError, match="00000020"):
        brake(tmp_path, "7")
    brake(tmp_path, "8")


@pytest.mark.parametrize(
    ("nodes", "first"), [("n1", "n1"), ("gpu[07-09,12],login1", "gpu07"), ("a-[1,3]-x", "a-1-x"), ("n1,n2", "n1")]
)
def test_the_first_host_of_a_list(nodes, first):
    assert first_host(nodes) == first
