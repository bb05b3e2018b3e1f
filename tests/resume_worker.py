"""One rank of a short training that may be killed: `python -m tests.resume_worker SHARDS OUT THREADS OBJECTIVE`.

Writes the ids that each committed step was made of to OUT/../ids-RANK.jsonl, a line a step, before it goes on.
"""

import json
import sys
from pathlib import Path
from typing import Any

from pipeline import process
from pipeline.settings.nets import CNN, ViT
from pipeline.settings.objectives import PIRL, Head, MoCo
from pipeline.settings.stages import Pretrain
from pipeline.settings.training import LARS, SGD
from pipeline.stages import pretrain
from pipeline.training import loop
from pipeline.world import World

HEAD = Head(hidden=16, dim=8)
OBJECTIVES = {
    "moco": MoCo(queue=100, momentum=0.9, head=HEAD),
    "pirl": PIRL(head=HEAD, negatives=64, temperature=0.2, bank="sharded"),
}
SHARDED = "sharded"  # weights sharded over the ranks
STEPS, BATCH, EXAMPLES = 40, 32, 256  # five epochs of eight steps


def main(shards: Path, out: Path, threads: int, name: str) -> int:
    world = World(threads)
    changes: dict[str, Any] = {"net": CNN(width=8), "optimiser": SGD(lr=0.05, reference_batch=0)}
    if name == SHARDED:
        trunk = ViT(patch=2, width=16, depth=2, heads=2, frozen_patches=False)
        lars = LARS(lr=5.0, reference_batch=0)
        changes = {"net": trunk, "optimiser": lars, "weights": "sharded", "ema": 0.9, "clip": 1.0}
    settings = Pretrain(
        data="shards", batch=BATCH, train_examples=EXAMPLES, steps=STEPS, save_steps=3, keep=3, log_steps=1,
        snapshots=1, objective=OBJECTIVES.get(name, OBJECTIVES["moco"]), views={"kind": "characters"},
        threads=threads, **changes,
    )  # fmt: skip
    seen = (out.parent / f"ids-{world.rank}.jsonl").open("a")
    plain = loop.backward

    def noted(model, objective, batches):
        ids = [i for b in batches for i in b.ids.tolist()]
        seen.write(json.dumps([batches[0].step, world.rank, ids]) + "\n")
        seen.flush()
        return plain(model, objective, batches)

    loop.backward = noted
    out.mkdir(exist_ok=True)
    pretrain.run(settings, 0, {"shards": shards}, out, world)
    world.close()
    return 0


if __name__ == "__main__":
    process.run(lambda: main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
