"""`pipeline run` on a Ray cluster of its own: the true exit code, a line for a mistake, nothing left running.

The same codes through Ray Jobs: test_jobs; under Slurm: test_slurm.
"""

import secrets
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import small
from tests.processes import send, started_with, until

pytestmark = pytest.mark.cluster
MARK = "PIPELINE_TEST_RUN"
TRAIN = ["--only", "moco"]
ENDLESS = ["moco.steps=1000000", *TRAIN]


class Run:
    """The command in a process of its own, known by a mark that all it starts inherit."""

    def __init__(self, root: Path, *words: str):
        self.root, self.mark = root, secrets.token_hex(8)
        command = [sys.executable, "-m", "pipeline", "run", str(small.write(root)), *words]
        env = small.alone() | {MARK: self.mark}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=small.ROOT, env=env, stdout=pipe, stderr=pipe, text=True)

    def trains(self) -> None:
        until(lambda: small.step(self.root) >= small.LOG or self.process.poll() is not None)
        assert self.process.poll() is None, self.process.communicate()

    def ended(self) -> tuple[int, str]:
        _, told = self.process.communicate(timeout=600)
        # Ray's agents notice after more than a minute that their raylet was killed.
        until(lambda: not started_with(**{MARK: self.mark}), say=lambda: str(started_with(**{MARK: self.mark})))
        return self.process.returncode, told


@pytest.mark.parametrize(
    ("code", "words", "line"),
    [
        pytest.param(0, ["--only", "shards"], "", marks=pytest.mark.slow),  # Ray's agents take a minute to leave
        (2, ["moco.epoch=3"], 'did you mean "epochs"'),
        (65, ["shards.source=folder:EMPTY"], "EMPTY"),
        pytest.param(69, ["shards.place={on: task, gpus: 64}"], "64 GPU", marks=pytest.mark.slow),
        pytest.param(
            70, ["moco.optimiser={kind: sgd, lr: 1.0e+30, reference_batch: 0}", *TRAIN], "moco:",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_codes(tmp_path, code, words, line):
    (empty := tmp_path / "empty").mkdir()
    found, told = Run(tmp_path / "runs", *(word.replace("EMPTY", str(empty)) for word in words)).ended()
    assert found == code, told
    assert line.replace("EMPTY", str(empty)) in told and "Traceback" not in told


@pytest.mark.slow
def test_a_long_folder_for_temporary_files_is_no_cluster_that_did_not_form(tmp_path, monkeypatch):
    (long := tmp_path / ("scratch_of_a_cluster_job_" * 5)).mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    run = Run(tmp_path / "runs", "--only", "shards")
    said, told = run.process.communicate(timeout=600)
    assert run.process.returncode == 0, told
    assert said.count("is too long a folder for Ray's sockets") == 1 and "shards: done" in said


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_asked_to_stop_it_saves(tmp_path, number):
    run = Run(tmp_path / "runs", *ENDLESS)
    run.trains()
    send([run.process.pid], number)
    code, told = run.ended()
    assert code == 75 and "saved at step" in told and "Traceback" not in told, told


@pytest.mark.slow
def test_killed_it_leaves_nothing_running(tmp_path):
    run = Run(tmp_path / "runs", *ENDLESS)
    run.trains()
    send([run.process.pid], signal.SIGKILL)
    assert run.ended()[0] == -signal.SIGKILL
