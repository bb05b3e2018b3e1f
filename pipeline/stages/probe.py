"""Judges encoders: the same images, splits and label draws for all, raw pixels and an untrained net beside them."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import progress, sheets
from pipeline.board import Board
from pipeline.data.index import Shards
from pipeline.errors import DataError, Stopped
from pipeline.evaluation import encoders, figures, knn, linear, quality
from pipeline.evaluation.features import Pictures, features
from pipeline.settings.stages import Probe
from pipeline.world import World

SHOWN = 2000  # test samples in the projector


@dataclass(frozen=True)
class Data:
    """What every row is judged on: labels [n], the parts of the training split, the label draws."""

    train: Shards
    test: Shards
    y: np.ndarray
    y_test: np.ndarray
    parts: linear.Split
    draws: list[np.ndarray]
    names: list[str]


@dataclass(frozen=True)
class Judged:
    """One encoder's numbers: all labels, few labels, kNN accuracy, RankMe of its test features."""

    every: linear.Result
    few: linear.Result
    knn: float
    rankme: float
    spread: float


def run(settings: Probe, seed: int, inputs: dict[str, Path], out: Path, world: World) -> dict[str, Any]:
    """Probes every encoder along its snapshots, then writes rows, pictures and the protocol they were got by."""
    data = load(settings, seed, inputs[settings.data])
    plain = data.train.image(data.train.manifest["height"] or 32)
    rows: dict[str, list[tuple[int, encoders.Encoder]]] = {
        name: along(inputs[name], plain.side) for name in settings.encoders
    }
    last = max((step for row in rows.values() for step, _ in row), default=1)
    for name, encoder in (
        ("raw_pixels", encoders.pixels(plain)),
        ("random", encoders.untrained(settings.random_net, plain, seed)),
    ):
        rows[name] = [(0, encoder), (last, encoder)]
    pictures: dict[int, tuple[Pictures, Pictures]] = {}
    found: dict[str, dict[int, Judged]] = {name: {} for name in rows}
    tests: dict[str, Tensor] = {}
    total, done = sum(len(row) for row in rows.values()), 0
    for name, row in rows.items():
        known: dict[int, Judged] = {}
        for step, encoder in row:
            if world.stopping():
                raise Stopped("asked to stop while probing: features so far are kept; the same command goes on")
            side = encoder.image.side
            if side not in pictures:
                limit = settings.train_examples
                pictures[side] = Pictures(data.train, side, limit), Pictures(data.test, side)
            if id(encoder) not in known:
                kept = out / "features" / f"{name}-{step:08d}"
                pair = [
                    features(encoder, p, kept.with_name(f"{kept.name}-{half}.safetensors"), world.device)
                    for half, p in zip(("train", "test"), pictures[side], strict=True)
                ]
                known[id(encoder)] = judge(settings, data, pair[0], pair[1])
                tests[name] = pair[1]
            found[name][step] = known[id(encoder)]
            done += 1
            progress.report(out, done, total, f"{name} at step {step}")
    metrics = summary(settings, seed, data, {name: steps[max(steps)] for name, steps in found.items()})
    show(settings, data, found, tests, pictures[plain.side][1], metrics, out)
    write(out / "results.json", results(metrics, found, data))
    return metrics


def load(settings: Probe, seed: int, folder: Path) -> Data:
    train, test = Shards.open(folder, "train"), Shards.open(folder, "test")
    y, y_test = train.labels[: settings.train_examples], test.labels
    if (y < 0).any() or (y_test < 0).any() or not len(y_test):
        raise DataError(f"{folder}: a probe needs a label for every image and a test split; these have not both")
    parts = linear.split(y, settings.validation, seed)
    draws = [linear.draw(y, parts.fit, settings.per_class, seed, i) for i in range(settings.draws)]
    return Data(train, test, y, y_test, parts, draws, train.classes or [str(c) for c in range(int(y.max()) + 1)])


def along(folder: Path, side: int) -> list[tuple[int, encoders.Encoder]]:
    """An artifact's encoders by training step: its snapshots, and the finished one last."""
    found = [(int(p.name), encoders.load(p)) for p in sorted((folder / "snapshots").glob("[0-9]*"))]
    metrics = folder / "metrics.jsonl"
    rows = metrics.read_text().splitlines() if metrics.exists() else []
    last = json.loads(rows[-1])["step"] if rows else 1
    return [*found, (max(last, 1), encoders.load(folder))]


def judge(settings: Probe, data: Data, train: Tensor, test: Tensor) -> Judged:
    if not (torch.isfinite(train).all() and torch.isfinite(test).all()):
        raise DataError("an encoder gives features that are not finite: train it again, with a lower learning rate")
    x, x_test = train.numpy(), test.numpy()
    classes = knn.classify(train, torch.from_numpy(data.y), test, settings.neighbours, settings.temperature)
    return Judged(
        every=linear.all_labels(x, data.y, x_test, data.y_test, data.parts),
        few=linear.few_labels(x, data.y, x_test, data.y_test, data.parts, data.draws),
        knn=float((classes.numpy() == data.y_test).mean()),
        rankme=quality.rankme(train),
        spread=quality.spread(train),
    )


def numbers(settings: Probe, judged: Judged) -> dict[str, float]:
    """A row: fractions between 0 and 1."""
    few = f"linear_{settings.per_class}_per_class"
    return {
        "linear_top1": judged.every.test[0],
        few: float(np.mean(judged.few.test)),
        f"{few}_sd": float(np.std(judged.few.test, ddof=1)),
        "knn_top1": judged.knn,
    }


def summary(settings: Probe, seed: int, data: Data, last: dict[str, Judged]) -> dict[str, Any]:
    """The artifact's metrics: rows, and the protocol without which no number appears."""
    protocol = {
        "n_train": len(data.y),
        "n_validation": len(data.parts.validation),
        "n_test": len(data.y_test),
        "seed": seed,
        "per_class": settings.per_class,
        "draws": settings.draws,
        "penalties": list(linear.PENALTIES),
        "neighbours": settings.neighbours,
        "temperature": settings.temperature,
        "features": "of the trunk in evaluation mode, standardised on the fit part; cosine for neighbours",
        "selection": "penalty by accuracy on validation; the test split read once, at the chosen penalty",
        "sd": "over label draws (n - 1)",
        "train_fingerprint": data.train.fingerprint,
    }
    return {"rows": {name: numbers(settings, judged) for name, judged in last.items()}, "protocol": protocol}


def results(metrics: dict[str, Any], found: dict[str, dict[int, Judged]], data: Data) -> dict[str, Any]:
    """All that was measured: each row along training, its selection grid, every label draw's accuracy."""
    rows = {}
    for name, steps in found.items():
        judged = steps[max(steps)]
        rows[name] = {
            "steps": {str(step): {"linear_top1": j.every.test[0], "knn_top1": j.knn} for step, j in steps.items()},
            "penalty": judged.every.penalty,
            "validation": judged.every.validation,
            "few_label_penalty": judged.few.penalty,
            "few_label_validation": judged.few.validation,
            "few_label_test": judged.few.test,
            "rankme": judged.rankme,
        }
    draws = [[data.train.key(int(i)) for i in ids] for ids in data.draws]
    return {"protocol": metrics["protocol"], "rows": rows, "label_draws": draws}


def write(path: Path, body: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(body, indent=1, sort_keys=True) + "\n")
    part.replace(path)


def show(
    settings: Probe,
    data: Data,
    found: dict[str, dict[int, Judged]],
    tests: dict[str, Tensor],
    pictures: Pictures,
    metrics: dict[str, Any],
    out: Path,
) -> None:
    """TensorBoard: a sub-run a row, so that they overlay in one card; beside them the ladder and the protocol."""
    few = f"linear_{settings.per_class}_per_class"
    board = Board(out)
    board.image("probe/rows", 0, figures.ladder(metrics["rows"], few))
    board.text("protocol", card(metrics))
    board.close()
    shown = torch.arange(min(SHOWN, len(data.y_test)))
    sprites = pictures.take(shown.numpy())
    for name, steps in found.items():
        board = Board(out / name)
        for step, judged in sorted(steps.items()):
            row = {f"probe/{k}": v for k, v in numbers(settings, judged).items()}
            board.scalars(step, row | {"learn/rankme": judged.rankme, "learn/feature_std": judged.spread})
        judged = steps[max(steps)]
        title = f"{name}: {100 * judged.every.test[0]:.1f} % of {len(data.y_test)} with all labels"
        board.image("probe/confusion", 0, figures.confusion(data.y_test, judged.every.predicted, data.names, title))
        board.image("probe/neighbours", 0, alike(tests[name], pictures))
        board.embedding("features", reduced(tests[name][shown]), [data.names[c] for c in data.y_test[shown]], sprites)
        board.hparams({"encoder": name, "features": tests[name].shape[1]}, {f"hparam/{k}": v for k, v in
                      metrics["rows"][name].items()})  # fmt: skip
        board.close()


def alike(test: Tensor, pictures: Pictures, rows: int = 10, columns: int = 9) -> np.ndarray:
    """A test image at the left of each row, and the test images whose features are nearest to its own."""
    asked = torch.linspace(0, len(test) - 1, rows).long()
    _, places = knn.neighbours(test, test[asked], columns)
    return sheets.tile(pictures.take(places.flatten().numpy()).float() / 255, columns)


def reduced(rows: Tensor, dims: int = 50) -> Tensor:
    """Features on their first principal axes: the projector reads text, so fewer numbers."""
    x = (rows - rows.mean(0)).double()
    _, axes = torch.linalg.eigh(x.T @ x)
    return (x @ axes.flip(1)[:, :dims]).float()


def card(metrics: dict[str, Any]) -> str:
    """Rows and protocol in Markdown."""
    rows, protocol = metrics["rows"], metrics["protocol"]
    few = f"linear_{protocol['per_class']}_per_class"
    lines = [f"| row | linear, all labels | linear, {protocol['per_class']} a class | kNN |", "|---|---|---|---|"]
    for name, row in rows.items():
        spread = 100 * row[f"{few}_sd"]
        lines.append(
            f"| {name} | {100 * row['linear_top1']:.2f} ± {sampling(row['linear_top1'], protocol['n_test']):.2f} | "
            f"{100 * row[few]:.2f} ± {spread:.2f} | {100 * row['knn_top1']:.2f} |"
        )
    lines += ["", "± of all labels: of a finite test set; of few labels: over label draws.", ""]
    return "\n".join(lines + [f"- {key}: {value}" for key, value in protocol.items()])


def sampling(p: float, n: int) -> float:
    """Binomial standard deviation of an accuracy, in per cent."""
    return 100 * math.sqrt(p * (1 - p) / n)
