"""SIGKILL at random moments, then on with other threads or another number of ranks: the undisturbed run.

One kill of each objective by default, a third with `-m slow`; twenty with `-m slow tests/test_resume.py --kills 20`.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.training import checkpoint
from tests.resume_worker import BATCH, EXAMPLES, OBJECTIVES, SHARDED, STEPS

pytestmark = pytest.mark.cluster


def begin(shards: Path, out: Path, threads: int, ranks: int, name: str) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    words = [sys.executable, "-m", "tests.resume_worker", str(shards), str(out), str(threads), name]
    return [
        subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "ACCELERATE_USE_CPU": "true", **({**world, "RANK": str(r), "LOCAL_RANK": str(r)}
                                                               if ranks > 1 else {})},
        )
        for r in range(ranks)
    ]  # fmt: skip


def finish(started: list[subprocess.Popen]) -> None:
    told = [p.communicate(timeout=900)[0] for p in started]
    assert [p.returncode for p in started] == [0] * len(started), "\n".join(told)


def whole_lines(path: Path) -> list[str]:
    """The lines written to their end: of a file in the writing, or of a killed writer, the last may be half a line."""
    return path.read_text().split("\n")[:-1] if path.exists() else []


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in whole_lines(out / "metrics.jsonl")]


def batches(home: Path) -> dict[int, set[int]]:
    """By step, the ids that it was made of, over its ranks and however often it was computed."""
    found: dict[int, set[int]] = {}
    for path in home.glob("ids-*.jsonl"):
        for line in whole_lines(path):
            step, _, ids = json.loads(line)
            assert len(set(ids)) == len(ids) in (BATCH, BATCH // 2)
            found.setdefault(step, set()).update(ids)
    return found


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    """Undisturbed runs, one process and one thread."""
    folders = {name: tmp_path_factory.mktemp(name) / "run" for name in OBJECTIVES}
    finish([process for name, folder in folders.items() for process in begin(digits, folder, 1, 1, name)])
    return folders


def strike(at: int, digits: Path, home: Path, whole: dict[str, Path]) -> None:
    """The kill of this number: every other with another number of ranks, every one with other threads; the first
    alike, to the bit."""
    home.mkdir()
    name = list(OBJECTIVES)[at % 2]
    before, after = ((1, 1), (1, 1)) if at == 0 else ((1, 1 + at % 2), (2, 2 - at % 2))
    moment = random.Random(at).randrange(4, STEPS - 2)
    kill(begin(digits, home / "run", *before, name), home / "run", moment)
    finish(begin(digits, home / "run", *after, name))
    assert len(list(home.glob("ids-*.jsonl"))) == max(before[1], after[1])  # a file each rank that ever ran
    compare(whole[name], home, exact=at == 0)
    print(f"kill {at + 1}: {name} at step {moment}, threads and ranks {before} then {after}")


@pytest.mark.parametrize("at", [0, 1])
def test_killed_it_goes_on(at, digits, tmp_path, whole):
    strike(at, digits, tmp_path / "home", whole)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_killed_and_gone_on_with_other_threads_and_ranks(digits, tmp_path, request, whole):
    for at in range(2, request.config.getoption("--kills")):
        strike(at, digits, tmp_path / f"{at}", whole)


def kill(started: list[subprocess.Popen], out: Path, moment: int) -> None:
    """Kills all ranks once so many steps were logged."""
    while len(whole_lines(out / "metrics.jsonl")) < moment and all(p.poll() is None for p in started):
        time.sleep(0.002)
    for p in started:
        p.send_signal(signal.SIGKILL)
    told = [p.communicate()[0] for p in started]
    assert any(p.returncode == -9 for p in started) and not (out / "model.safetensors").exists(), "\n".join(told)


@pytest.mark.slow
def test_sharded_weights_are_the_replicated_ones(digits, tmp_path):
    """Two ranks that hold half of everything, one that goes on with what they left, and two again."""
    (tmp_path / "cut").mkdir()
    whole, cut = tmp_path / "whole", tmp_path / "cut/run"
    finish(begin(digits, whole, 1, 1, SHARDED))
    kill(begin(digits, cut, 1, 2, SHARDED), cut, 12)
    kill(begin(digits, cut, 1, 1, SHARDED), cut, 25)
    assert len(list(cut.parent.glob("ids-*.jsonl"))) == 2
    finish(begin(digits, cut, 1, 2, SHARDED))
    compare(whole, tmp_path / "cut", exact=False)
    for name in ("model.safetensors", f"snapshots/{STEPS // 2:08d}/model.safetensors"):
        one, two = load_file(whole / name), load_file(cut / name)
        assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in two.items()}


def compare(whole: Path, home: Path, exact: bool) -> None:
    """Loss curve, weights, memory, and every planned id once in every epoch."""
    if exact:
        for name in ("metrics.jsonl", "model.safetensors", f"checkpoints/{STEPS:08d}/tensors.safetensors"):
            assert (whole / name).read_bytes() == (home / "run" / name).read_bytes(), name
    a, b = rows(whole), rows(home / "run")
    assert [r["step"] for r in a] == [r["step"] for r in b] == list(range(1, STEPS + 1))
    assert [r["learn/loss"] for r in b] == pytest.approx([r["learn/loss"] for r in a], rel=1e-4)
    (one, _), (two, _) = (checkpoint.newest(f / "checkpoints") for f in (whole, home / "run"))
    assert set(one) == set(two)
    for key, value in one.items():
        if value.is_floating_point():
            torch.testing.assert_close(two[key], value, rtol=0, atol=1e-3 * float(value.abs().max()), msg=key)
        else:
            assert torch.equal(two[key], value), key
    seen = batches(home)
    assert sorted(seen) == list(range(STEPS)) and {len(ids) for ids in seen.values()} == {BATCH}
    for epoch in range(STEPS * BATCH // EXAMPLES):
        steps = range(epoch * EXAMPLES // BATCH, (epoch + 1) * EXAMPLES // BATCH)
        assert sorted(i for step in steps for i in seen[step]) == list(range(EXAMPLES))
