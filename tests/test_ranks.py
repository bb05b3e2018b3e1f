"""Two ranks over gloo are one: the same loss, gradient and state for the same global batch."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.rank_worker import FEW, QUICK, RUNS, train

pytestmark = pytest.mark.cluster


def start(folder: Path, count: int, *words: str) -> list[dict]:
    """What each of ``count`` ranks ended with, all runs in one set of processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.rank_worker", str(folder), *words],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1",
                 "ACCELERATE_USE_CPU": "true"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(count)
    ]  # fmt: skip
    outputs = [p.communicate(timeout=600)[0] for p in started]
    assert [p.returncode for p in started] == [0] * count, "\n".join(outputs)
    return [torch.load(folder / f"{rank}-of-{count}.pt") for rank in range(count)]


REST = [run for run in RUNS if run not in QUICK]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return start(tmp_path_factory.mktemp("ranks"), 2, *QUICK)


@pytest.fixture(scope="module")
def rest(tmp_path_factory):
    return start(tmp_path_factory.mktemp("rest"), 2, *REST)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return start(tmp_path_factory.mktemp("four"), 4, *FEW)


def size(value) -> float:
    """Its largest entry; of whole numbers 0, since they have to be equal."""
    return float(value.abs().max()) if value.is_floating_point() else 0.0


def close(two, one, tolerance: float, scale: float | None = None) -> None:
    """Every tensor to ``tolerance``, relative to ``scale`` or else to its largest entry."""
    assert set(two) == set(one)
    for key, value in one.items():
        limit = tolerance * (scale or size(value))
        torch.testing.assert_close(two[key], value, rtol=0, atol=limit, msg=lambda m, k=key: f"{k}: {m}")


def hold(several, run: str, one) -> None:
    """First gradient and three losses, all ten losses and the last state of several ranks against one's."""
    first, after_ten = (1e-5, 1e-4) if "_fp32" in run else (1e-12, 1e-10)
    for step, (loss, energy) in enumerate(zip(one["losses"], one["energies"], strict=True)):
        scale = max(abs(loss), energy)  # a loss may be a small difference of energies
        assert abs(several["losses"][step] - loss) <= (first if step < 3 else after_ten) * scale
    largest = max(size(g) for g in one["gradient"].values())
    assert largest > 1e-3
    close(several["gradient"], one["gradient"], first, largest)
    close(several["state"], one["state"], after_ten)


@pytest.mark.parametrize("run", QUICK)
def test_two_ranks_are_one(run, ranks, world):
    hold(ranks[0][run], run, train(run.replace("_local", "_split"), world))  # each rank by itself: two blocks


@pytest.mark.slow
@pytest.mark.parametrize("run", REST)
def test_two_ranks_are_one_in_other_ways(run, rest, world):
    test_two_ranks_are_one(run, rest, world)


@pytest.mark.slow
@pytest.mark.parametrize("run", FEW)
def test_four_ranks_are_one(run, four, world):
    hold(four[0][run], run, train(run, world))


@pytest.mark.parametrize("several", ["ranks", pytest.param("four", marks=pytest.mark.slow)])
def test_a_sharded_bank_is_the_whole_one(several, request):
    first = request.getfixturevalue(several)[0]
    assert first["pirl_sharded"]["losses"] == first["pirl"]["losses"]
    close(first["pirl_sharded"]["state"], first["pirl"]["state"], 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("run", REST)
def test_all_ranks_end_with_the_same_bits_in_other_ways(run, rest):
    test_all_ranks_end_with_the_same_bits(run, rest)


@pytest.mark.parametrize("run", QUICK)
def test_all_ranks_end_with_the_same_bits(run, ranks):
    """Weights, memory, and batch norm's statistics too."""
    first, second = (r[run]["state"] for r in ranks)
    assert [k for k, v in first.items() if not torch.equal(v, second[k])] == []


def test_each_rank_by_itself_is_something_else(ranks):
    losses = [ranks[0][run]["losses"][0] for run in ("simclr", "simclr_local")]
    assert abs(losses[0] - losses[1]) > 1e-4
