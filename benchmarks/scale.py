"""What 1,024 ranks on 10^9 images in 10^5 shards would take: `python -m benchmarks.scale`.

Nothing is sent and no image read: every rank's plan is made for real, the rest are formulas over the modules' shapes.
"""

import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import torch

from pipeline import objectives, show
from pipeline.data.order import BatchSampler, Sampler
from pipeline.data.shards import shard_table, table_bytes
from pipeline.data.store import OPEN
from pipeline.image import Image
from pipeline.objectives.base import Setup
from pipeline.settings.nets import Norm, ResNet
from pipeline.settings.objectives import PIRL, Head, MoCo
from pipeline.world import World

RANKS, SHARDS, IMAGES, BATCH, WINDOW = 1024, 100_000, 10**9, 32_768, 64
STEP = 900_000_000 // BATCH
IMAGE = Image(3, 224, (0.5,) * 3, (0.25,) * 3)


def plan(path: Path, rank: int) -> np.ndarray:
    """From nothing to the ids of a step in the middle of an epoch, as a rank that was just started does it."""
    counts = np.load(path, allow_pickle=False)["images"].astype(np.int64)
    epoch, (positions,) = BatchSampler(IMAGES, BATCH, 1, rank, RANKS).at(STEP)
    return Sampler(counts, 0, WINDOW).ids(epoch, positions)


def plans() -> list[list[object]]:
    rows = [(f"train-{i:06d}.tar", IMAGES // SHARDS, 1 << 30, 1, 1, bytes(32)) for i in range(SHARDS)]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "train.npy")
        path.write_bytes(table_bytes(shard_table(rows)))
        start = time.process_time()
        plan(path, RANKS - 1)
        seconds = time.process_time() - start
        tracemalloc.start()
        plan(path, RANKS - 1)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        counts = np.load(path)["images"].astype(np.int64)
        order, parts = Sampler(counts, 0, WINDOW), []
        for rank in range(RANKS):
            epoch, (positions,) = BatchSampler(IMAGES, BATCH, 1, rank, RANKS).at(STEP)
            parts.append(order.ids(epoch, positions))
    ids = np.concatenate(parts)
    assert len(np.unique(ids)) == BATCH
    touched = [len(np.unique(part // (IMAGES // SHARDS))) for part in parts]
    return [
        ["plan to the first batch, one rank", f"{1e3 * seconds:.0f} ms", "table of shards, order of shards, ids"],
        ["its memory at the peak", f"{peak / 1e6:.1f} MB", "40 bytes a shard, whatever the images"],
        ["ids of all ranks' shares of a step", f"{BATCH:,} of {BATCH:,} distinct", "made for each of the 1,024 ranks"],
        ["shards a rank's share touches", f"{max(touched)} at most", f"of the {WINDOW + 1} that the window opens"],
        ["files a rank keeps open", f"{OPEN} at most", "the least used is closed"],
    ]  # fmt: skip


def traffic(name: str, settings: MoCo | PIRL) -> list[list[object]]:
    """Bytes of a step on every rank, and of a checkpoint."""
    with torch.device("meta"):
        net = ResNet(kind="resnet50", norm=Norm())
        objective = objectives.build(settings, Setup(IMAGE, IMAGES, net, World.single(device="meta"), 0))
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    bank = {n for n, b in objective.named_buffers() if b.dim() and len(b) == IMAGES}
    memory = sum(b.numel() * b.element_size() for n, b in objective.named_buffers() if n in bank)
    held = sum(t.numel() * t.element_size() for n, t in objective.state_dict().items() if n not in bank)
    dim = settings.head.dim
    rows: list[list[object]] = [
        [f"{name}: all-reduce of gradients", f"{2 * (RANKS - 1) / RANKS * 4 * trained / 1e6:.0f} MB", "2 (W-1)/W 4P"],
        [f"{name}: gather of rows and ids", f"{BATCH * (4 * dim + 8) / 1e6:.1f} MB", "B (4d + 8)"],
        [f"{name}: checkpoint", f"{(held + 4 * trained) / 1e6:.0f} MB", "weights, statistics, queue, momentum: 4P"],
    ]
    if memory:
        rows.append([f"{name}: bank, sharded", f"{memory / RANKS / 1e6:.0f} MB a rank", "n (4d + 8) / W"])
        rows.append([f"{name}: bank in a checkpoint", f"{memory / 1e9:.0f} GB", "n (4d + 8), all of it by rank 0"])
    return rows


def main() -> None:
    pirl = PIRL(bank="sharded", head=Head(hidden=0, dim=128))
    rows = plans() + traffic("MoCo v2", MoCo(queue=65536, head=Head(hidden=2048, dim=128))) + traffic("PIRL", pirl)
    title = f"{RANKS:,} ranks, {SHARDS:,} shards, {IMAGES:,} images, batch {BATCH:,}, ResNet-50"
    show.table(title, ["what", "how much", "from"], rows)


if __name__ == "__main__":
    main()
