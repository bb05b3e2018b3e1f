"""Worker processes prepare the same micro-batches as threads, say why they ended, and end with their trainings."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Pipe
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data.cropper import Cropper
from pipeline.data.pinned import Buffers
from pipeline.data.shards import QUARANTINE, Shards
from pipeline.data.worker import Workers, serve
from pipeline.errors import DataError, NoProgressError
from pipeline.settings.data import CifarViews
from tests.test_faults import damaged, packed  # noqa: F401  (fixtures)
from tests.test_faults import loader as damaged_loader
from tests.test_views_feed import CASES, digest, loader, photographs, run, tiny  # noqa: F401  (fixtures)

ROWS = 8


def parts(shards) -> tuple[Cropper, Buffers]:
    source = loader(shards)
    source.close()
    cropper = Cropper(shards, source.transform, source.sampler, None)
    return cropper, Buffers([(ROWS, *shape) for shape in source.transform.view_shapes], torch.float32, 3)


def filled(cropper: Cropper, ids: np.ndarray) -> tuple[torch.Tensor, ...]:
    views = tuple(torch.empty(len(ids), *shape) for shape in cropper.transform.view_shapes)
    cropper.fill(0, 1, np.arange(len(ids)), ids.copy(), views)
    return views


def test_a_worker_answers_by_views_and_by_errors(photographs):  # noqa: F811
    """Its loop, in a thread here."""
    cropper, buffers = parts(photographs)
    ours, theirs = Pipe()
    thread = threading.Thread(target=serve, args=(theirs, pickle.dumps((cropper, buffers))))
    thread.start()
    ids, rows = np.array([5, 70, 2]), slice(3, 6)
    ours.send(("fill", 1, rows, 0, 1, np.arange(3), ids))
    (report, same), error = ours.recv()
    assert error is None and report.faults == [] and report.seconds["decode"] > 0 and same.tolist() == [5, 70, 2]
    for views, expected in zip(buffers.sets[1], filled(cropper, ids), strict=True):
        assert torch.equal(views[rows], expected) and expected.std() > 0.1
        assert not views[:3].any() and not views[6:].any()
    assert not any(t.any() for k in (0, 2) for t in buffers.sets[k])
    ours.send(("fill", 1, rows, 0, 1, np.arange(3), np.array([5, 10_000, 2])))
    answer, error = ours.recv()
    assert answer is None and isinstance(error, IndexError)
    ours.close()
    thread.join(10)
    assert not thread.is_alive()


def test_shards_that_were_quarantined_meanwhile_are_refused(photographs, tmp_path):  # noqa: F811
    folder = tmp_path / "set"
    shutil.copytree(photographs.folder, folder)
    given = pickle.dumps(Shards.open(folder))
    assert pickle.loads(given).n == photographs.n
    (folder / QUARANTINE).write_text("{}")
    with pytest.raises(DataError, match="quarantined since this run began"):
        pickle.loads(given)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_worker_processes_change_no_bit(photographs, name):  # noqa: F811
    given = CASES[name]
    made = loader(photographs, *given, threads=2, accumulate=2, processes=True)
    found = digest([run(made)])
    assert made.workers is not None and len(made.workers.connections) == 2
    assert found == digest([run(loader(photographs, *given, accumulate=2))])


@pytest.mark.slow
@pytest.mark.parametrize("memory", [0, 1 << 20])
def test_worker_processes_replace_what_cannot_be_read_as_threads_do(damaged, tmp_path, memory):  # noqa: F811
    found, logs = [], []
    for processes in (False, True):
        log = tmp_path / f"{processes}.jsonl"
        made = damaged_loader(damaged, threads=2, memory=memory, bad_samples=log, processes=processes)
        found.append(digest([run(made)]))
        logs.append(sorted(log.read_text().splitlines()))
    assert found[0] == found[1] and logs[0] == logs[1] and len(logs[0]) >= 3


@pytest.mark.slow
def test_worker_processes_share_images_held_in_memory(tiny):  # noqa: F811
    made = loader(tiny, views=CifarViews(), threads=2, processes=True)
    assert digest([run(made)]) == digest([run(loader(tiny, views=CifarViews()))])
    assert made.decoded is not None and made.decoded.images.any()


@pytest.mark.slow
def test_workers_outlive_signals_to_stop_and_a_death_is_told(photographs):  # noqa: F811
    cropper, buffers = parts(photographs)
    workers = Workers(cropper, buffers, 2)
    pids = children(workers.process.pid, 2)
    ids = np.array([5, 70])
    for pid in (workers.process.pid, *pids):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP):
            os.kill(pid, number)
    assert workers.fill(0, slice(2), 0, 1, np.arange(2), ids).faults == []
    assert torch.equal(buffers.sets[0][0][:2], filled(cropper, ids)[0])
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(NoProgressError, match="killed by SIGKILL; memory may have run out"):
        for _ in range(2):  # each of the two has its turn
            workers.fill(0, slice(2), 0, 1, np.arange(2), ids)
    workers.close()
    assert gone(pids, 10)


def children(pid: int, count: int) -> list[int]:
    """The processes that a process has forked, once there are ``count``."""
    while len(found := Path(f"/proc/{pid}/task/{pid}/children").read_text().split()) < count:
        time.sleep(0.05)
    return [int(p) for p in found]


def gone(pids: list[int], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


SCRIPT = """
import sys, time
from tests.test_worker import children, parts
from pipeline.data.shards import Shards
from pipeline.data.worker import Workers
workers = Workers(*parts(Shards.open(sys.argv[1])), 2)
print(workers.process.pid, *children(workers.process.pid, 2), flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_workers_end_with_a_killed_training(photographs):  # noqa: F811
    command = [sys.executable, "-c", SCRIPT, str(photographs.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as training:
        assert training.stdout is not None
        pids = [int(pid) for pid in training.stdout.readline().split()]
        assert len(pids) == 3 and all(Path(f"/proc/{pid}").exists() for pid in pids)
        training.kill()
    assert gone(pids, 30)
