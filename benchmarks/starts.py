"""How soon a stage begins: a command's first training step on a cluster of its own, and a stage on a warm one."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
CONFIG = """\
stages:
  shards: {kind: pack, source: digits}
  moco:
    kind: pretrain
    data: shards
    net: {kind: cnn}
    views: {kind: characters}
    objective: {kind: moco, queue: 64}
    batch: 64
    steps: 1
"""
STARTED = "import ray; ray.init('local', include_dashboard=False, log_to_driver=False)"
IMPORTED = "import torch, accelerate"


def seconds(*words: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def first_step(root: Path, config: Path) -> float:
    """From the command to the first row of its training, on shards that are packed already."""
    start = time.time()
    words = ["-m", "pipeline", "run", str(config), f"root={root}", "--only", "moco", f"moco.seed={int(start)}"]
    seconds(*words)
    newest = max(root.glob("moco-*/metrics.jsonl"), key=lambda p: p.stat().st_mtime)
    return newest.stat().st_mtime - start


def start() -> dict[str, Any]:
    """One `ray.init` and one import of torch, one after the other, over the time to the first step."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "c.yaml")
        config.write_text(CONFIG)
        seconds("-m", "pipeline", "run", str(config), f"root={folder}/runs", "--here")  # packs; fills every cache
        mine, peer = [], []
        for _ in range(ROUNDS):
            peer.append(seconds("-c", STARTED) + seconds("-c", IMPORTED))
            mine.append(first_step(Path(folder, "runs"), config))
    return {"ratio": median(peer) / median(mine), "ours": median(mine), "peer": median(peer), "unit": "s", "n": ROUNDS}


def dispatch() -> dict[str, Any]:
    """A stage that is done already, sent to a warm worker and answered, over 50 ms."""
    from pipeline import config, plan
    from pipeline.placement.ray import Cluster

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "c.yaml")
        path.write_text(CONFIG)
        seconds("-m", "pipeline", "run", str(path), f"root={folder}/runs", "--here", "--only", "shards")
        planned = plan.plan(config.load(str(path), [f"root={folder}/runs"]))
        job, cluster, answers = plan.job(planned[0], planned), Cluster(), []
        for _ in range(20):
            start = time.perf_counter()
            cluster.wait([cluster.submit(job)])
            answers.append(time.perf_counter() - start)
        cluster.close()
    mine = 1e3 * median(answers[5:])
    return {"ratio": 50 / mine, "ours": mine, "peer": 50.0, "unit": "ms", "n": 15}

