"""Ray Jobs on a real cluster of two raylets: what is submitted ends as it would have ended here.

One cluster for all of the tests; jobs that do not depend on each other run side by side.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import small
from tests.artifacts import differences
from tests.processes import frozen, send, until
from tests.raylets import Raylets, ended, submit

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster():
    raylets = Raylets()
    yield raylets
    raylets.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The run folder of the small config, undisturbed in one process."""
    root = tmp_path_factory.mktemp("whole") / "runs"
    small.here(small.write(root))
    return root


def signalled(root: Path, ask) -> None:
    """Has the training asked to stop at a known step: it is frozen until its stop file is there."""
    until(lambda: small.step(root) >= small.LOG)
    out = small.only(root, "moco-*")
    with frozen(small.trainer(root)):
        ask()
        until((out / "stop").exists)


def end(cluster: Raylets, config: Path, words: dict[int, list[str]]) -> dict[int, str]:
    """Jobs side by side with the changes that make each end with its code -> what they printed."""
    jobs = {code: submit(cluster, config, *changes) for code, changes in words.items()}
    ends = {code: ended(cluster, job) for code, job in jobs.items()}
    assert {code: own for code, (own, _, _) in ends.items()} == {code: code for code in words}, ends
    assert {code: info.driver_exit_code for code, (_, _, info) in ends.items()} == {code: code for code in words}
    return {code: log for code, (_, log, _) in ends.items()}


def test_jobs_end_with_the_true_exit_code_and_the_same_bytes(cluster, whole, tmp_path):
    logs = end(cluster, small.write(tmp_path / "job"), {0: [], 2: ["moco.epoch=3"]})
    assert "tensorboard --logdir" in logs[0] and 'did you mean "epochs"' in logs[2]
    assert differences(whole, tmp_path / "job") == []


@pytest.mark.slow
def test_jobs_that_fail_end_with_the_true_exit_code(cluster, tmp_path):
    (empty := tmp_path / "empty").mkdir()
    words = {
        65: [f"shards.source=folder:{empty}", f"root={tmp_path}/65"],
        69: ["shards.place={on: task, gpus: 64}", f"root={tmp_path}/69"],
        70: ["moco.optimiser={kind: sgd, lr: 1.0e+30, reference_batch: 0}", f"root={tmp_path}/70", "--only", "moco"],
    }
    end(cluster, small.write(tmp_path / "job"), words)


@pytest.mark.slow
def test_stopped_signalled_and_killed_it_saves_and_the_next_job_goes_on(cluster, whole, tmp_path):
    """`ray job stop` leaves no exit code, so the job's last line says it; a signal's arrives by itself."""
    config = small.write(root := tmp_path / "runs")
    client, job = cluster.client(), submit(cluster, config)
    signalled(root, lambda: client.stop_job(job))
    code, log, told = ended(cluster, job)
    assert (told.status, told.driver_exit_code, code) == ("STOPPED", None, 75) and "saved at step" in log, log

    before, job = small.step(root), submit(cluster, config)
    until(lambda: small.step(root) > before)
    first = small.trainer(root)
    send(cluster.find("python jobs/run.py"), signal.SIGKILL)
    assert ended(cluster, job)[0] == 137

    job = submit(cluster, config)
    until(lambda: (now := small.trainer(root)) and now != first and cluster.find("python jobs/run.py"))
    with frozen(small.trainer(root)):
        send(cluster.find("python jobs/run.py"), signal.SIGTERM)
        until((small.only(root, "moco-*") / "stop").exists)
    code, log, told = ended(cluster, job)
    assert (told.status, told.driver_exit_code, code) == ("FAILED", 75, 75), log

    code, log, _ = ended(cluster, submit(cluster, config))
    assert code == 0 and "shards: done already" in log, log
    assert differences(whole, root) == []


def on_workers(cluster: Raylets, config: Path, stage: str) -> None:
    """One stage on two workers of Ray Train."""
    words = [f"{stage}.place={{on: workers, workers: 2}}", "--only", stage]
    code, log, _ = ended(cluster, submit(cluster, config, *words))
    assert code == 0, log
    record = small.only(config.parent / config.stem, f"{stage}-*/artifact.json")
    assert json.loads(record.read_text())["processes"] == 2


@pytest.mark.slow
def test_workers_of_ray_train_are_the_ranks_of_torchrun(cluster, tmp_path):
    """Two processes each, under two launchers: every loss, and every byte of the artifacts, is the same."""
    config = small.write(root := tmp_path / "workers")
    on_workers(cluster, config, "moco")
    small.here(config, f"root={tmp_path / 'ranks'}", "--only", "moco", ranks=2)
    assert small.losses(root) == small.losses(tmp_path / "ranks")
    assert differences(root, tmp_path / "ranks") == []


@pytest.mark.slow
def test_codes_of_two_workers_are_those_of_two_ranks_and_of_one(cluster, tmp_path):
    config = small.write(root := tmp_path / "workers")
    with config.open("a") as file:
        file.write("  codes: {kind: codes, data: shards, signals: 1024, batch: 256, atoms: 16, lista_steps: 8}\n")
    on_workers(cluster, config, "codes")
    small.here(config, f"root={tmp_path / 'ranks'}", "--only", "codes", ranks=2)
    assert differences(root, tmp_path / "ranks") == []
    small.here(config, f"root={tmp_path / 'one'}", "--only", "codes")
    for name in ("model.json", "model.safetensors"):
        alone, shared = (small.only(r, "codes-*") / name for r in (tmp_path / "one", root))
        assert alone.read_bytes() == shared.read_bytes()


def test_the_command_submits_watches_and_ends_with_the_jobs_code(cluster, whole, tmp_path):
    """A run that is finished already, and one that cannot be: neither starts a training."""
    config = small.write(root := tmp_path / "runs")
    root.symlink_to(whole)
    command = [sys.executable, "-m", "pipeline", "submit", str(config), "--address", cluster.url]
    run = subprocess.run(command, cwd=small.ROOT, env=cluster.env, capture_output=True, text=True)
    assert run.returncode == 0 and "moco: done already" in run.stdout, run.stdout + run.stderr
    (job,) = [j for j in cluster.client().list_jobs() if (j.submission_id or "").startswith("runs-")]
    assert job.metadata["root"] == str(root)
    env = {k: v for k, v in cluster.env.items() if not k.startswith("RAY_AUTH")}
    run = subprocess.run(command, cwd=small.ROOT, env=env | {"HOME": str(tmp_path)}, capture_output=True, text=True)
    assert run.returncode == 69 and "RAY_AUTH_TOKEN" in run.stderr and "Traceback" not in run.stderr


def test_a_package_holds_the_code_and_nothing_else(cluster):
    found = [p for p in Path(cluster.folder).rglob("_ray_pkg_*") if p.is_dir()]
    assert found
    for package in found:
        names = {os.path.relpath(p, package) for p in package.rglob("*") if p.is_file()}
        assert {"jobs/run.py", "pipeline/cli.py", "configs/quickstart.yaml"} <= names
        assert not [n for n in names if n.startswith((".git/", "data/", "runs/", ".venv/", "tests/"))]
        assert sum((package / n).stat().st_size for n in names) < 5e6
