"""A class of a user's own file is trained as ours are: killed, on two ranks, and as a Ray job of two machines."""

import json
import shlex
import signal
import subprocess
import sys

import pytest

from tests import small
from tests.processes import send, until
from tests.raylets import Raylets, ended

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
TRAIN = ["--only", "moco"]


def test_killed_it_goes_on_to_the_same_bits(tmp_path):
    small.here(small.write_own(whole := tmp_path / "whole"), *TRAIN)
    config = small.write_own(root := tmp_path / "killed")
    words = [sys.executable, "-m", "pipeline", "run", str(config), "--here", *TRAIN]
    run = subprocess.Popen(words, cwd=small.ROOT, env=small.alone(), stdout=subprocess.DEVNULL)
    until(lambda: small.step(root) >= 5 * small.LOG)
    send([run.pid], signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL and small.step(root) < small.STEPS
    small.here(config, *TRAIN)
    assert small.losses(whole) == small.losses(root)
    assert small.apart(whole, root) == []


def test_two_ranks_are_one(tmp_path):
    exact = ["moco.precision=fp64", *TRAIN]
    roots = {ranks: tmp_path / f"on-{ranks}" for ranks in (1, 2)}
    for ranks, root in roots.items():
        small.here(small.write_own(root), *exact, ranks=ranks)
    small.near(roots[1], roots[2])


def test_workers_on_another_machine_are_sent_the_file(tmp_path):
    """The config and the file lie in the first machine's /dev/shm, which the second does not see; each machine has one
    of the two workers. Every loss, and every byte of the model, is that of two ranks of torchrun."""
    config = small.write_own(root := tmp_path / "workers")
    place = ["moco.place={on: workers, workers: 2}", "moco.threads=2", *TRAIN]
    cluster = Raylets(apart=True)
    try:
        moved = f"cp {config} {config.parent / 'mine.py'} /dev/shm"
        run = f"python jobs/run.py /dev/shm/{config.name} {shlex.join(place)}"
        client = cluster.client()
        job = client.submit_job(entrypoint=f"{moved} && {run}", runtime_env={"working_dir": str(small.ROOT)})
        code, log, _ = ended(cluster, job)
    finally:
        cluster.close()
    assert code == 0, log
    record = json.loads(small.only(root, "moco-*/artifact.json").read_text())
    assert (record["processes"], record["imports"]["mine"]["path"]) == (2, "/dev/shm/mine.py")
    small.here(small.write_own(ranks := tmp_path / "ranks"), "moco.threads=2", *TRAIN, ranks=2)
    assert small.losses(root) == small.losses(ranks)
    model = "moco-*/model.safetensors"
    assert small.only(root, model).read_bytes() == small.only(ranks, model).read_bytes()
