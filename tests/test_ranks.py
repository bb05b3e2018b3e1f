"""Two ranks over gloo are one: the same loss, gradient and state for the same global batch."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from tests.rank_worker import RUNS, train

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two ranks ended with, all runs in one pair of processes."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.rank_worker", str(folder)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [p.communicate(timeout=300)[0] for p in started]
    assert [p.returncode for p in started] == [0, 0], "\n".join(outputs)
    return [torch.load(folder / f"{rank}-of-2.pt") for rank in range(2)]


def size(value) -> float:
    """Its largest entry; of whole numbers 0, since they have to be equal."""
    return float(value.abs().max()) if value.is_floating_point() else 0.0


def close(two, one, tolerance: float, scale: float | None = None) -> None:
    """Every tensor to ``tolerance``, relative to ``scale`` or else to its largest entry."""
    assert set(two) == set(one)
    for key, value in one.items():
        limit = tolerance * (scale or size(value))
        torch.testing.assert_close(two[key], value, rtol=0, atol=limit, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("run", RUNS)
def test_two_ranks_are_one(run, ranks, world):
    two, one = ranks[0][run], train(run.replace("_local", "_split"), world)  # each rank by itself: two blocks
    exact = not run.endswith("_fp32")
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-12 if exact else 1e-5)
    largest = max(size(g) for g in one["gradient"].values())
    assert largest > 1e-3
    close(two["gradient"], one["gradient"], 1e-12 if exact else 1e-5, largest)
    close(two["state"], one["state"], 1e-11 if exact else 1e-4)


@pytest.mark.parametrize("run", RUNS)
def test_all_ranks_end_with_the_same_bits(run, ranks):
    """Weights, memory, and batch norm's statistics too."""
    first, second = (r[run]["state"] for r in ranks)
    assert [k for k, v in first.items() if not torch.equal(v, second[k])] == []


def test_each_rank_by_itself_is_something_else(ranks):
    losses = [ranks[0][run]["losses"][0] for run in ("simclr", "simclr_local")]
    assert abs(losses[0] - losses[1]) > 1e-4
