"""A config of seconds with every part of the base chain, and how the tests of clusters run and compare it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import progress
from tests.artifacts import differences
from tests.processes import owners

ROOT = Path(__file__).parent.parent
STEPS, LOG = 100, 10
SMALL = f"""\
root: ROOT
stages:
  shards: {{kind: pack, source: digits}}
  moco:
    kind: pretrain
    data: shards
    net: {{kind: cnn, width: 8, depth: 2}}
    views: {{kind: characters}}
    objective: {{kind: moco, queue: 64, head: {{hidden: 16, dim: 8}}}}
    batch: 64
    steps: {STEPS}
    log_steps: {LOG}
    save_epochs: 1
    snapshots: 0
  probe:
    {{kind: probe, data: shards, encoders: [moco], draws: 2, train_examples: 400}}
"""


def write(root: Path) -> Path:
    """The config beside its run folder."""
    path = root.parent / f"{root.name}.yaml"
    path.write_text(SMALL.replace("ROOT", str(root)))
    return path


def write_own(root: Path) -> Path:
    """The config with a class of a user's file, which lies beside it, in the place of MoCo's."""
    path = write(root)
    shutil.copy(ROOT / "docs/plugins/triplet.py", path.parent / "mine.py")
    moco, triplet = "{kind: moco, queue: 64, head: {hidden: 16, dim: 8}}", '{kind: "mine:Triplet", dim: 8}'
    path.write_text("imports: [mine.py]\n" + path.read_text().replace(moco, triplet))
    return path


def alone() -> dict[str, str]:
    """An environment of no cluster and no launcher."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SLURM_"))}
    return kept | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def here(config: Path, *words: str, ranks: int = 1) -> None:
    """The undisturbed run: in one process, or on the ranks of torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    words = (sys.executable, *launcher, "-m", "pipeline", "run", str(config), "--here", *words)
    done = subprocess.run(words, cwd=ROOT, env=alone(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    given = [word.partition("=")[2] for word in words if word.startswith("root=")]
    root = Path(given[-1]) if given else config.parent / config.stem  # as `write` has it
    made = [json.loads(path.read_text()) for path in root.glob("*/artifact.json")]
    assert {record["processes"] for record in made if record["kind"] in ("pretrain", "codes")} == {ranks}


def only(root: Path, pattern: str) -> Path:
    """The one file or folder below a run folder that matches."""
    (found,) = root.glob(pattern)
    return found


def step(root: Path) -> int:
    """How far the training below a run folder has come."""
    return max(((progress.read(p) or (0,))[0] for p in root.glob("moco-*")), default=0)


def trainer(root: Path) -> list[int]:
    """The process that holds the training's lock: the first rank, or the stage's task."""
    return [pid for lock in root.glob("moco-*/lock") for pid in owners(lock)]


def losses(root: Path) -> str:
    """The training's metrics, as they were written."""
    text = only(root, "moco-*/metrics.jsonl").read_text()
    steps = [json.loads(line)["step"] for line in text.splitlines()]
    assert steps == sorted(set(steps)) and set(steps) >= set(range(LOG, STEPS + 1, LOG))
    return text


def near(whole: Path, root: Path) -> None:
    """The training's metrics in float64, whatever the number of ranks."""
    ours, theirs = ([json.loads(line) for line in losses(r).splitlines()] for r in (root, whole))
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=1e-10)


def apart(whole: Path, root: Path) -> list[str]:
    """Files that differ from those of the undisturbed run, but for the requeue guard's note, and a checkpoint that was
    kept of an interruption beside the last one."""
    last = f"checkpoints/{STEPS:08d}/"
    found = [n for n in differences(whole, root) if not n.startswith(".slurm-")]
    return [n for n in found if "checkpoints/" not in n or last in n]
