"""The real command under every launcher: any number of processes trains to the same losses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.artifacts import differences

pytestmark = pytest.mark.cluster

STEPS = 5
# The small-image recipe (MoCo's colab) at a size that two cores carry.
CONFIG = """\
stages:
  shards: {kind: pack, source: digits}
"""
STAGE = """\
  NAME_PRECISION:
    kind: pretrain
    data: shards
    net: {kind: cnn, width: 8}
    views: {kind: characters}
    objective: OBJECTIVE
    steps: 5
    batch: 32
    log_steps: 1
    precision: PRECISION
    optimiser: {kind: sgd, lr: 0.06, reference_batch: 64, momentum: 0.9, weight_decay: 5.0e-4}
"""
OBJECTIVES = {
    "moco": "{kind: moco, queue: 100, momentum: 0.99, temperature: 0.1, head: {hidden: 0, dim: 16}}",
    "moco_symmetric": "{kind: moco, queue: 100, momentum: 0.99, symmetric: true, head: {hidden: 32, dim: 16}}",
    "simclr": "{kind: simclr, temperature: 0.5, head: {hidden: 32, dim: 16}}",
    "pirl": "{kind: pirl, negatives: 200, head: {hidden: 0, dim: 16}}",
    "pirl_infonce": "{kind: pirl, loss: infonce, negatives: 0, temperature: 0.2, head: {hidden: 32, dim: 16}}",
}
AUTOENCODER = """\
  vae_PRECISION:
    kind: pretrain
    data: shards
    net: {kind: mlp, width: 32}
    objective: {kind: vae, latent: 4, decoder: {width: 32}}
    steps: 5
    batch: 32
    log_steps: 1
    precision: PRECISION
"""
TOLERANCES = {"fp32": 1e-4, "fp64": 1e-10}
STAGES = [f"{name}_fp64" for name in (*OBJECTIVES, "vae")] + ["moco_fp32", "pirl_fp32", "vae_fp32"]
FEW = ["moco_fp64", "pirl_fp32"]  # what the launchers beside torchrun are shown
MODULE = ["-m", "pipeline", "run", "config.yaml", "--here", "--only"]
LAUNCHERS = {
    "here": [sys.executable, *MODULE],
    "torchrun_1": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1", *MODULE],
    "torchrun_2": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *MODULE],
    "accelerate_2": [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1",
        "--mixed_precision=no", "--dynamo_backend=no", "--num_cpu_threads_per_process=1", "--main_process_port=0",
        *MODULE,
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """The same config under each launcher -> folders of artifacts."""
    home = tmp_path_factory.mktemp("launch")
    text = CONFIG
    for stage in STAGES:
        name, _, precision = stage.rpartition("_")
        body = AUTOENCODER if name == "vae" else STAGE.replace("OBJECTIVE", OBJECTIVES[name])
        text += body.replace("NAME", name).replace("PRECISION", precision)
    (home / "config.yaml").write_text(text)
    here = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    here |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent), "ACCELERATE_USE_CPU": "true"}
    folders = {}
    for name, words in LAUNCHERS.items():
        words = words + (STAGES if name in ("here", "torchrun_2") else FEW)
        done = subprocess.run(words, cwd=home, env=here, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{name}: {done.stdout}\n{done.stderr}"
        folders[name] = home / name
        shutil.move(home / "runs", folders[name])
        records = [json.loads(p.read_text()) for p in folders[name].glob("*/artifact.json")]
        ranks = {record["processes"] for record in records if record["kind"] == "pretrain"}
        assert ranks == {2 if name.endswith("_2") else 1}, f"{name}: trained by {ranks} processes"
    return folders


def logged(root: Path, stage: str) -> list[dict[str, float]]:
    (folder,) = (p for p in root.iterdir() if p.name.rpartition("-")[0] == stage)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "learn/loss" in row]


@pytest.mark.parametrize(
    ("launcher", "stage"), [*(("torchrun_2", s) for s in STAGES), *(("accelerate_2", s) for s in FEW)]
)
def test_two_processes_log_the_losses_of_one(launcher, stage, runs):
    """And in float64 every other number of the board."""
    one, two = logged(runs["here"], stage), logged(runs[launcher], stage)
    assert len(one) == STEPS and len({row["learn/loss"] for row in one}) == STEPS
    precision = stage.rpartition("_")[2]
    for ours, theirs in zip(one, two, strict=True):
        columns = ours.keys() | theirs.keys() if precision == "fp64" else ("learn/loss",)
        close = {"rel": TOLERANCES[precision], "abs": 1e-12}
        assert {c: theirs[c] for c in columns} == pytest.approx({c: ours[c] for c in columns}, **close)


def test_the_slowest_rank_is_named(runs):
    """Of the feed and of the device: the seconds of a step are those of one of the ranks."""
    (path,) = runs["torchrun_2"].glob("moco_fp64-*/timings.jsonl")
    last = json.loads(path.read_text().splitlines()[-1])
    assert 0 < last["speed/compute_least"] <= last["speed/compute_most"] and last["speed/wait_most"] >= 0
    assert {last["speed/compute_rank"], last["speed/wait_rank"]} <= {0.0, 1.0}


def test_one_process_of_a_launcher_makes_the_bytes_of_here(runs):
    found = differences(runs["here"], runs["torchrun_1"])
    assert [name for name in found if name.startswith(("shards", *FEW))] == []
