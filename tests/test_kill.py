"""SIGKILL at random moments, the command repeated: the artifacts of an undisturbed run.

Three moments of a shortened quick start here; the whole of it with `pytest tests/test_kill.py --kills 10`.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.artifacts import differences

ROOT = Path(__file__).parent.parent
SHORT = [
    "moco.epochs=4", "moco.save_epochs=1", "moco.snapshots=1", "pirl.epochs=3", "pirl.save_epochs=1",
    "pirl.snapshots=0", "vicreg.epochs=1", "vicreg.snapshots=0", "vae.epochs=3", "vae.snapshots=0",
    "codes.signals=4096", "codes.lista_steps=20", "probe.draws=2", "probe.train_examples=700",
]  # fmt: skip


def start(root: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "pipeline", "run", str(ROOT / "configs/quickstart.yaml"), f"root={root}", *more]
    return subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(root: Path, *more: str) -> tuple[str, float]:
    begun = time.monotonic()
    process = start(root, *more)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output, time.monotonic() - begun


@pytest.fixture(scope="module")
def changes(request) -> list[str]:
    return SHORT if request.config.getoption("--kills") <= 3 else []


@pytest.fixture(scope="module")
def whole(tmp_path_factory, changes) -> tuple[Path, float]:
    """The undisturbed run, and its seconds."""
    root = tmp_path_factory.mktemp("whole")
    return root, finish(root, *changes)[1]


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(7200)
def test_killed_at_random_moments(tmp_path, request, changes, whole):
    kills = request.config.getoption("--kills")
    root, took = whole
    draw = random.Random(kills)
    struck, tries = 0, 0
    while struck < kills:
        process = start(tmp_path / str(tries), *changes)
        time.sleep(draw.uniform(0.1, 0.7) * took)
        os.killpg(process.pid, signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            struck += 1
            print(f"kill {struck} of {kills}")
        else:  # it was done before: from the start again, and sooner
            struck, tries, took = 0, tries + 1, 0.6 * took
    killed = tmp_path / str(tries)
    finish(killed, *changes)
    assert differences(root, killed) == []
    output, _ = finish(killed, *changes)
    assert output.count("done already") == 10


@pytest.mark.slow
@pytest.mark.cluster
def test_here_and_tasks_make_the_same_bytes(tmp_path, changes, whole):
    finish(tmp_path, *changes, "--here")
    assert differences(whole[0], tmp_path) == []
