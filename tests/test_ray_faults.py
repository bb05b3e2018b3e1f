"""What breaks under a running Ray job: a worker, a machine, the head. The training ends as if nothing had."""

import json
import signal
import time
from pathlib import Path

import pytest

from pipeline.errors import DataError
from tests import small
from tests.processes import frozen, send, until
from tests.raylets import Raylets, ended, submit

pytestmark = pytest.mark.cluster
TRAIN = ["--only", "moco", "moco.save_epochs=1"]


@pytest.fixture(scope="module")
def cluster():
    raylets = Raylets(cpus=1, apart=True)  # a rank on each
    yield raylets
    raylets.close()


def trains(root: Path, step: int) -> None:
    until(lambda: small.step(root) >= step and small.trainer(root))


@pytest.mark.slow
def test_a_worker_and_then_a_machine_are_replaced_within_one_job(cluster, tmp_path):
    """A rank on each of two machines. A rank is killed; then the second machine is announced to go, all save, it goes,
    and another one joins."""
    config = small.write(root := tmp_path / "runs")
    small.here(small.write(tmp_path / "whole"), *TRAIN, ranks=2)
    job = submit(cluster, config, "moco.place={on: workers, workers: 2}", *TRAIN)
    trains(root, 30)
    first = small.trainer(root)
    assert first and small.step(root) < small.STEPS
    send(first, signal.SIGKILL)
    until(lambda: (now := small.trainer(root)) and now != first and small.step(root) >= 40, 200)
    with frozen(small.trainer(root)):  # or it would be done before the news has come to it
        cluster.drain(1)
        time.sleep(4)
    until(lambda: "preempt_save_s" in small.only(root, "moco-*/timings.jsonl").read_text(), 100)
    cluster.kill(1)
    cluster.join()
    code, log, _ = ended(cluster, job)
    assert code == 0, log
    assert small.losses(tmp_path / "whole") == small.losses(root)
    assert small.apart(tmp_path / "whole", root) == []


@pytest.mark.slow
def test_after_the_head_is_lost_the_next_job_goes_on_with_the_machines_there_are(cluster, tmp_path):
    """A rank on each of two machines, then one on one, then two again within the same job once a machine has joined;
    in float64: the losses of one rank that nothing disturbs."""
    exact = ["moco.precision=fp64", *TRAIN]
    small.here(small.write(tmp_path / "whole"), *exact)
    config = small.write(root := tmp_path / "runs")
    words = ["moco.place={on: workers, workers: 2, min_workers: 1}", *exact]
    submit(cluster, config, *words)
    trains(root, 30)
    for node, _ in enumerate(cluster.nodes):
        cluster.kill(node)
    assert not small.trainer(root) and small.step(root) < small.STEPS
    cluster.head()
    before, job = small.step(root), submit(cluster, config, *words)
    until(lambda: small.step(root) > before, 300)
    with frozen(small.trainer(root)):
        cluster.join()
    code, log, _ = ended(cluster, job)
    assert code == 0, log
    assert json.loads(small.only(root, "moco-*/artifact.json").read_text())["processes"] == 2
    small.near(tmp_path / "whole", root)


def test_what_may_be_tried_again():
    """A lost worker, told by Ray or by another's broken connection; never what a stage would meet again."""
    from ray.exceptions import ActorDiedError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    from pipeline.placement.ray import worker_loss

    gone, echo, fault = ActorDiedError(), RuntimeError("Connection closed by peer [::1]:1"), KeyError("own")
    failed = WorkerHealthCheckFailedError("a check failed", gone)
    assert worker_loss([echo, failed]) is gone
    assert worker_loss([echo]) is echo
    for failures, raised in (([failed, DataError("bad")], DataError), ([echo, fault], KeyError)):
        with pytest.raises(raised):
            worker_loss(failures)
