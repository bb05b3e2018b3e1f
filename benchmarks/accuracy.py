"""Joint embeddings of ours beside lightly's MoCo and SimCLR, raw pixels and an untrained network, over three seeds.

    uv run --group bench python -m benchmarks.accuracy [OUT [SET ...]]        goes on where it was stopped
    uv run --group bench python -m benchmarks.accuracy --choose [OUT [SET ...]]

All train the same small network on the first IMAGES training images, one torch thread each, two at a time, and are
judged on those images and the whole test split by this project's probe. Ours see EPOCHS epochs. Lightly's are composed
of its modules and transforms as its documentation does it, with the same batches, queue, temperature and schedule, and
train for the processor seconds that ours of the same seed took (of the process with all of its threads, which other
work on the machine changes little): the learning rate falls along a cosine, ours over its steps and lightly's over
those seconds. PIRL is judged along its way as well: each row of its bank is refreshed once an epoch, so its epochs
count the refreshes. ± is the deviation over seeds (first weights, order, views, validation, labels drawn); the images
are the same in all of them, and so are the processor and the settings.

PIRL's settings are chosen by --choose on a seed that is not in the table: the candidate with the best accuracy of the
linear probe with all labels on validation, which is every fifth of the training images in turn. Test is not read.
"""

import copy
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from benchmarks.data import need
from pipeline.data.images import SquareImages, images
from pipeline.data.shards import Shards
from pipeline.errors import DataError
from pipeline.evaluation import encoders, linear, scores
from pipeline.evaluation.features import features
from pipeline.image import Image
from pipeline.nets import trunks
from pipeline.objectives.base import Batch
from pipeline.settings.nets import Net
from pipeline.settings.stages import Pretrain, Probe
from pipeline.stages import pretrain
from pipeline.training import checkpoint
from pipeline.world import World

IMAGES, EPOCHS, BATCH, SEEDS = 2000, 32, 128, (0, 1, 2)
CHOICE_SEED = 10
OURS = ("pirl", "moco", "simclr", "vicreg", "barlow_twins", "lejepa")
PEERS = ("lightly_moco", "lightly_simclr")
QUEUE, MOMENTUM, TEMPERATURE, LR = 1024, 0.99, 0.2, 1e-3
HEAD = {"hidden": 256, "dim": 64}
EXPANDER = {"hidden": 256, "dim": 256}
"""Of three layers, as those have it that have no negatives."""
OBJECTIVES = {
    "pirl": {"kind": "pirl", "loss": "infonce", "negatives": 0, "temperature": TEMPERATURE, "head": HEAD},
    "moco": {"kind": "moco", "queue": QUEUE, "momentum": MOMENTUM, "temperature": TEMPERATURE, "head": HEAD},
    "simclr": {"kind": "simclr", "temperature": TEMPERATURE, "head": HEAD},
    "vicreg": {"kind": "vicreg", "head": EXPANDER},
    "barlow_twins": {"kind": "barlow_twins", "head": EXPANDER},
    "lejepa": {"kind": "lejepa", "slices": 256, "head": HEAD},
}
SETS: dict[str, dict[str, Any]] = {
    "mnist": {
        "net": {"kind": "cnn", "halve": "stride", "grid": 4},
        "views": {"kind": "characters", "elastic": 1.5, "elastic_sigma": 4.0, "stroke": 0.5},
    },
    "cifar10": {"net": {"kind": "cnn", "halve": "stride", "grid": 4}, "views": {"kind": "cifar"}},
}

WIDE = {"cifar10": {"jigsaw": {"cell": 16, "patch": 12}}, "mnist": {"jigsaw": {"cell": 13, "patch": 10}}}
"""Patches half as large again as the default's: of CIFAR-10's enlarged as the other view is, whose crop holds half of
the image on average."""
CANDIDATES: dict[str, list[dict[str, Any]]] = {
    "cifar10": [{"temperature": t, **patches} for t in (0.1, 0.2) for patches in ({}, WIDE["cifar10"])],
    "mnist": [{}, WIDE["mnist"]],
}
"""What --choose tries for PIRL. The temperature 0.1 is that of vissl's recipe of PIRL with InfoNCE and two-layer
heads; the other methods' settings were not tried against anything."""
CHOSEN = {"cifar10": 3, "mnist": 1}
"""The candidate that PIRL's rows have; MNIST's by test numbers, since validation was not asked there yet."""


def settings(name: str, method: str, changes: dict[str, Any] | None = None) -> Pretrain:
    """Of one of ours; ``changes`` to PIRL's objective: by default those chosen."""
    if changes is None:
        changes = CANDIDATES[name][CHOSEN[name]] if method == "pirl" else {}
    every = EPOCHS // 4
    return Pretrain.model_validate({
        "data": "shards", **SETS[name], "objective": OBJECTIVES[method] | changes, "train_examples": IMAGES,
        "batch": BATCH, "epochs": EPOCHS, "optimiser": {"kind": "adam", "lr": LR}, "save_epochs": every, "keep": 5,
        "snapshots": 3,
    })  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- train
def ours(stage: Pretrain, seed: int, shards: Path, out: Path, world: World) -> dict[str, float]:
    """-> processor seconds and images seen of a training of ours."""
    start = time.process_time()
    pretrain.run(stage, seed, {"shards": shards}, out, world)
    seconds = time.process_time() - start
    return {"seconds": seconds, "seen": stage.total_steps(Shards.open(shards, "train").n) * BATCH}


def lightlys(name: str, method: str, seed: int, shards: Path, out: Path, seconds: float) -> dict[str, float]:
    """MoCo v2 or SimCLR of lightly's modules on the network of ours, for so many processor ``seconds``."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead, SimCLRProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    torch.manual_seed(seed)
    net: Any = TypeAdapter(Net).validate_python(SETS[name]["net"])
    image = Shards.open(shards, "train").image(None)
    trunk = trunks.build(net, image, None, seed)
    moco = method == "lightly_moco"
    head = (MoCoProjectionHead if moco else SimCLRProjectionHead)(trunk.features, HEAD["hidden"], HEAD["dim"])
    slow, slow_head = copy.deepcopy(trunk), copy.deepcopy(head)
    deactivate_requires_grad(slow)
    deactivate_requires_grad(slow_head)
    criterion = NTXentLoss(TEMPERATURE, memory_bank_size=(QUEUE, HEAD["dim"]) if moco else 0)
    optimiser = torch.optim.AdamW([*trunk.parameters(), *head.parameters()], LR, weight_decay=0.0)
    start, seen = time.process_time(), 0
    for first, second in batches(name, method, shards, image):
        share = (time.process_time() - start) / seconds
        if share > 1:
            break
        optimiser.param_groups[0]["lr"] = LR * 0.5 * (1 + math.cos(math.pi * share))  # as optim.rate of ours
        if moco:
            update_momentum(trunk, slow, m=MOMENTUM)
            update_momentum(head, slow_head, m=MOMENTUM)
        query = head(trunk(first))
        with torch.set_grad_enabled(not moco):
            key = slow_head(slow(second)) if moco else head(trunk(second))
        optimiser.zero_grad()
        criterion(query, key).backward()
        optimiser.step()
        seen += BATCH
    encoders.save(out, trunk, {"net": net.model_dump(mode="json"), "image": encoders.describe(image)})
    return {"seconds": time.process_time() - start, "seen": seen}


def batches(name: str, method: str, shards: Path, image: Image) -> Iterator[list[Tensor]]:
    """Two views of each image by lightly's transform for small images, epoch after epoch, by torch's loader.
    Characters keep their sides, and are turned by up to 20 degrees."""
    from lightly.transforms.moco_transform import MoCoV2Transform
    from lightly.transforms.simclr_transform import SimCLRTransform
    from PIL import Image as Picture

    normal = {"mean": list(image.mean), "std": list(image.std)}
    options: dict[str, Any] = {"input_size": image.side, "gaussian_blur": 0.0, "normalize": normal}
    if name == "mnist":
        options |= {"hf_prob": 0.0, "rr_prob": 1.0, "rr_degrees": 20.0}
    transform: Any = (MoCoV2Transform if method == "lightly_moco" else SimCLRTransform)(**options)
    pixels = images(Shards.open(shards, "train"), np.arange(IMAGES), image.side)
    pictures = [Picture.fromarray(x.permute(1, 2, 0).squeeze().numpy()) for x in pixels]

    class Views(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return IMAGES

        def __getitem__(self, at: int) -> list[Tensor]:
            return transform(pictures[at])

    loader = torch.utils.data.DataLoader(Views(), BATCH, shuffle=True, drop_last=True)
    while True:
        yield from loader


def job(name: str, row: str, seed: int, shards: Path, out: Path) -> None:
    """One training; row.json last. The row pirl-N is PIRL with the N-th candidate's settings."""
    world, root = World(1), out / name / str(seed)
    method, _, number = row.partition("-")
    if method in OURS:
        stage = settings(name, method, CANDIDATES[name][int(number)] if number else None)
        cost = ours(stage, seed, shards, root / row, world)
    else:
        limit = json.loads((root / method.removeprefix("lightly_") / "row.json").read_text())["seconds"]
        cost = lightlys(name, method, seed, shards, root / row, limit)
    (root / row / "row.json").write_text(json.dumps(cost))


# --------------------------------------------------------------------------------------------------------------- judge
def evaluation(name: str, seed: int, shards: Path, out: Path) -> dict[str, dict[str, float]]:
    """Every row of a seed, and PIRL's along its epochs: the numbers of the probe by name."""
    stage = Probe(data="shards", encoders=("moco",), train_examples=IMAGES)
    data, world, root = scores.load(stage, seed, shards), World(1), out / name / str(seed)
    trained = [method for method in OURS + PEERS if (root / method / "row.json").exists()]
    rows: dict[str, Callable[[], encoders.Encoder]] = {m: lambda m=m: encoders.load(root / m) for m in trained}
    for at in sorted((root / "pirl/snapshots").glob("[0-9]*")):
        rows[f"pirl at {round(int(at.name) * BATCH / IMAGES)}"] = lambda at=at: encoders.load(at)
    image = encoders.load(root / trained[0]).image
    rows["raw pixels"] = lambda: encoders.pixels(data.train.image(None))
    network = encoders.network(root / trained[0])
    assert network is not None
    rows["untrained"] = lambda: encoders.untrained(network, seed)
    pictures = SquareImages(data.train, image.side, np.arange(IMAGES)), SquareImages(data.test, image.side)
    results = {}
    for row, load in rows.items():
        x, x_test = (features(load(), p, world.device) for p in pictures)
        results[row] = scores.evaluate(stage, data, row, x, x_test, world.device).row()
        if (root / row / "row.json").exists():
            results[row] |= json.loads((root / row / "row.json").read_text())
    return results


def validation(name: str, seed: int, shards: Path, folder: Path) -> tuple[float, float]:
    """Accuracy of the linear probe on validation at the best penalty, with all labels and with ten a class."""
    stage, world = Probe(data="shards", encoders=("pirl",), train_examples=IMAGES), World(1)
    data, encoder = scores.load(stage, seed, shards), encoders.load(folder)
    x = features(encoder, SquareImages(data.train, encoder.image.side, np.arange(IMAGES)), world.device)
    y, count = torch.from_numpy(data.y), len(data.names)
    space = linear.space(x, x[:0], data.parts.fit)
    every = linear.all_labels(space, y, y[:0], count, data.parts)
    few = linear.few_labels(space, y, y[:0], count, data.parts, data.draws)
    return max(score for _, score in every.grid), max(score for _, score in few.grid)


def invariance(name: str, seed: int, shards: Path, out: Path) -> dict[int, tuple[float, float]]:
    """By epoch of PIRL's training: mean squared distance of f(I) to g of the same image's patches, and of others'."""
    stage, world, root = settings(name, "pirl"), World(1), out / name / str(seed) / "pirl"
    objective, _, loader = pretrain.prepare(stage, seed, Shards.open(shards, "train"), world, root / "bad.jsonl")
    step, epoch, (loaded,) = next(iter(loader.steps(0)))
    batch = Batch(tuple(loaded.views), loaded.ids, step, epoch, seed)
    distances_by_epoch = {}
    for at in [0, *checkpoint.steps(root / "checkpoints")]:
        if at:
            tensors, _ = checkpoint.read(root / "checkpoints" / f"{at:08d}")
            state = {k.removeprefix("objective."): v for k, v in tensors.items() if k.startswith("objective.")}
            objective.load_state_dict(state)
        with torch.no_grad():
            (pair,) = objective.train().embed(batch)
        distances = torch.cdist(pair[:, 0], pair[:, 1]).square()
        own = distances.diagonal().mean()
        others = (distances.sum() - distances.diagonal().sum()) / (len(distances) * (len(distances) - 1))
        distances_by_epoch[round(at * BATCH / IMAGES)] = (float(own), float(others))
    loader.close()
    return distances_by_epoch


# ---------------------------------------------------------------------------------------------------------------- main
def main(out: str = "runs/accuracy", *names: str) -> None:
    for name in names or SETS:
        measure(name, Path(out))


def measure(name: str, home: Path) -> None:
    shards, rows = packed(name, home), {}
    for seed in SEEDS:
        for methods in (OURS, PEERS):  # ours first: theirs take as long
            train(name, methods, seed, shards, home)
        path = home / name / str(seed) / "rows.json"
        if not path.exists():
            path.write_text(json.dumps(evaluation(name, seed, shards, home)))
        rows[seed] = json.loads(path.read_text())
    report(name, rows, {seed: invariance(name, seed, shards, home) for seed in SEEDS})


def choose(out: str = "runs/accuracy", *names: str) -> None:
    """Prints how PIRL's candidates do on validation."""
    for name in names or SETS:
        home, rows = Path(out), [f"pirl-{i}" for i in range(len(CANDIDATES[name]))]
        shards = packed(name, home)
        train(name, rows, CHOICE_SEED, shards, home)
        print(f"\n{name}, seed {CHOICE_SEED}: accuracy on validation, %\n")
        print("| PIRL | linear, all labels | linear, 10 a class |\n|---|---|---|")
        for changes, row in zip(CANDIDATES[name], rows, strict=True):
            scores = validation(name, CHOICE_SEED, shards, home / name / str(CHOICE_SEED) / row)
            print(f"| {json.dumps(changes)} | {' | '.join(f'{100 * score:.2f}' for score in scores)} |", flush=True)


def packed(name: str, home: Path) -> Path:
    need(name)
    words = ["run", f"configs/{name}.yaml", f"root={home / 'shards'}", "--here", "--only", "shards"]
    subprocess.run([sys.executable, "-m", "pipeline", *words], check=True)
    return newest(home / "shards", name)


def train(name: str, rows: Sequence[str], seed: int, shards: Path, home: Path) -> None:
    """The trainings of these rows, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        codes = [pool.submit(alone, name, row, seed, shards, home) for row in rows]
        assert not any(code.result() for code in codes)


def newest(root: Path, name: str) -> Path:
    """The packed set of that name: of several, the one whose settings say it."""
    folders = [p.parent for p in root.glob("shards-*/artifact.json") if name in p.read_text()]
    return max(folders, key=lambda p: p.stat().st_mtime)


def alone(name: str, row: str, seed: int, shards: Path, home: Path) -> int:
    """One training in a process of its own, from its start: its seconds count."""
    folder = home / name / str(seed) / row
    if (folder / "row.json").exists():
        return 0
    shutil.rmtree(folder, ignore_errors=True)
    words = [sys.executable, "-m", "benchmarks.accuracy", "--job", name, row, str(seed), str(shards), str(home)]
    return subprocess.run(words, check=False).returncode


def report(name: str, rows: dict[int, dict[str, dict[str, float]]], distances: dict[int, dict[int, Any]]) -> None:
    print(f"\n{name}: mean ± deviation over {len(rows)} seeds, %\n")
    print("| row | linear, all labels | linear, 10 a class | kNN | images seen | processor seconds |")
    print("|---|---|---|---|---|---|")
    for row in rows[0]:
        cells = [cell(rows, row, key) for key in ("linear_top1", "linear_few", "knn_top1")]
        costs = [f"{np.mean([r[row][key] for r in rows.values()]):,.0f}" if key in rows[0][row] else ""
                for key in ("seen", "seconds")]  # fmt: skip
        print(f"| {row} | {' | '.join(cells + costs)} |")
    print("\n| epoch | f(I) to g of its own patches | to those of other images |\n|---|---|---|")
    for epoch in distances[0]:
        own, others = (np.mean([a[epoch][i] for a in distances.values()]) for i in (0, 1))
        print(f"| {epoch} | {own:.2f} | {others:.2f} |", flush=True)


def cell(rows: dict[int, dict[str, dict[str, float]]], row: str, key: str) -> str:
    values = [100 * r[row][key] for r in rows.values()]
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


if __name__ == "__main__":
    words = sys.argv[1:]
    if words[:1] == ["--job"]:
        job(words[1], words[2], int(words[3]), Path(words[4]), Path(words[5]))
    else:
        try:
            choose(*words[1:]) if words[:1] == ["--choose"] else main(*words)
        except DataError as error:
            sys.exit(str(error))
