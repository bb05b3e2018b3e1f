"""Evaluates encoders: the same images, splits and label draws for all, raw pixels and an untrained net beside them."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline import progress, sheets
from pipeline.board import Board
from pipeline.data.index import Shards
from pipeline.errors import DataError, Stopped
from pipeline.evaluation import encoders, figures, knn, linear, quality
from pipeline.evaluation.features import Pictures, features
from pipeline.lines import legible
from pipeline.settings.stages import Probe
from pipeline.world import World

SHOWN = 2000  # test samples in the projector
DIMS = 50  # principal axes of the features there
ASKED, ANSWERS = 10, 8  # rows and neighbours of the sheet
SMALL = 64  # pixels on a side up to which raw pixels are taken as packed; larger images are shrunk to half of it


class Data(NamedTuple):
    """What every row is evaluated on: labels int64 [n] and [m], the parts of the training split, the label draws."""

    train: Shards
    test: Shards
    y: np.ndarray
    y_test: np.ndarray
    parts: linear.Split
    draws: list[np.ndarray]
    names: list[str]


@dataclass(frozen=True)
class Point:
    """One encoder's numbers: accuracies on test, the penalties chosen with the validation accuracies they were chosen
    by, each label draw's accuracy, the confusion table of all labels (true class down), label-free quality."""

    linear: float
    penalty: float
    grid: list[tuple[float, float]]
    few: list[float]
    few_penalty: float
    few_grid: list[tuple[float, float]]
    knn: float
    rankme: float
    spread: float
    confusion: list[list[int]]


class Entry(NamedTuple):
    """An encoder of a row's curve: the training step it is from, and how to get it."""

    step: int
    load: Callable[[], encoders.Encoder]


def run(settings: Probe, seed: int, inputs: dict[str, Path], out: Path, world: World) -> dict[str, Any]:
    """Probes every encoder along its snapshots, then writes rows, pictures and the protocol they were got by.

    Each point is kept once it is known: a start that was cut off goes on with the next."""
    data = load(settings, seed, inputs[settings.data])
    rows = line_up(settings, seed, inputs, data)
    pictures: dict[int, tuple[Pictures, Pictures]] = {}
    total, done = sum(len(row) for row in rows.values()), 0

    def halt() -> None:
        if world.stopping():
            raise Stopped(f"asked to stop: evaluated {done} of {total} encoders; the same command goes on from there")

    curves: dict[str, dict[int, Point]] = {}
    tests: dict[str, Tensor] = {}
    for name, row in rows.items():
        curves[name] = {}
        for entry in row:
            halt()
            cached = out / "scores" / f"{name}-{entry.step:08d}.json"
            point = known(cached)
            if point is None or entry is row[-1]:
                encoder = entry.load()
                side = encoder.image.side
                if side not in pictures:
                    pictures[side] = Pictures(data.train, side, settings.train_examples), Pictures(data.test, side)
                files = [out / "features" / f"{name}-{half}.safetensors" for half in ("train", "test")]
                keep = files if entry is row[-1] else [None, None]
                x, x_test = (
                    features(encoder, p, world.device, k, halt) for p, k in zip(pictures[side], keep, strict=True)
                )
                tests[name] = x_test
                if point is None:
                    point = evaluate(settings, data, name, x, x_test, world.device)
                    write(cached, asdict(point))
            curves[name][entry.step] = point
            done += 1
            progress.report(out, done, total, f"{name}: {100 * point.linear:.1f} % at step {entry.step}")
    metrics = summary(settings, seed, data, curves, untrained(settings, inputs))
    write(out / "results.json", results(metrics, curves, data))
    show(settings, data, curves, tests, pictures[min(pictures)][1], metrics, out)
    return metrics


def load(settings: Probe, seed: int, folder: Path) -> Data:
    train, test = Shards.open(folder, "train"), Shards.open(folder, "test")
    y, y_test = train.labels[: settings.train_examples], test.labels
    for split, labels in (("training", y), ("test", y_test)):
        if not len(labels):
            raise DataError(f"{folder}: the {split} split is empty; a probe needs labelled images in it")
        if (labels < 0).any():
            raise DataError(
                f"{folder}: {(labels < 0).sum()} of {len(labels)} images of the {split} split have no label; a probe "
                f"needs one for each: pack folders named by class, or leave the probe out"
            )
    names = [legible(n) for n in train.classes or ()] or [str(c) for c in range(int(max(y.max(), y_test.max())) + 1)]
    parts = linear.split(y, settings.validation, seed)
    draws = [linear.draw(y, parts.fit, settings.per_class, seed, i) for i in range(settings.draws)]
    return Data(train, test, y, y_test, parts, draws, names)


def line_up(settings: Probe, seed: int, inputs: dict[str, Path], data: Data) -> dict[str, list[Entry]]:
    """The rows: every encoder along its training, raw pixels, and each network without training."""
    rows = {name: along(inputs[name]) for name in settings.encoders}
    last = max(entry.step for row in rows.values() for entry in row)
    height, width = data.train.manifest["height"], data.train.manifest["width"]
    plain = data.train.image(height if height and height == width <= SMALL else SMALL // 2)
    rows["raw_pixels"] = [Entry(last, lambda: encoders.pixels(plain))]
    for name, owners in untrained(settings, inputs).items():
        network = encoders.network(inputs[owners[0]])
        assert network is not None
        rows[name] = [Entry(last, lambda network=network: encoders.untrained(network, seed))]
    return rows


def untrained(settings: Probe, inputs: dict[str, Path]) -> dict[str, list[str]]:
    """The untrained rows, and the encoders whose network each is: ``random`` the first's, others called after the
    first encoder that has them. A dictionary of patches is no network: its codes have none."""
    owners: dict[str, list[str]] = {}
    for name in settings.encoders:
        network = encoders.network(inputs[name])
        if network is not None:
            owners.setdefault(json.dumps(network, sort_keys=True), []).append(name)
    return {f"random_{names[0]}" if i else "random": names for i, names in enumerate(owners.values())}


def along(folder: Path) -> list[Entry]:
    """An artifact's encoders by training step: its snapshots, and the finished one last."""
    found = [Entry(int(p.name), lambda p=p: encoders.load(p)) for p in sorted((folder / "snapshots").glob("[0-9]*"))]
    metrics = folder / "metrics.jsonl"
    rows = metrics.read_text().splitlines() if metrics.exists() else []
    last = json.loads(rows[-1])["step"] if rows else 1
    return [*found, Entry(max([last, 1, *(entry.step + 1 for entry in found)]), lambda: encoders.load(folder))]


def evaluate(settings: Probe, data: Data, name: str, train: Tensor, test: Tensor, device: torch.device) -> Point:
    """All of a row's numbers, from features [n, D] and [m, D]."""
    if not (torch.isfinite(train).all() and torch.isfinite(test).all()):
        raise DataError(f"{name}: its features are not all finite; train it again with a lower learning rate")
    train, test = train.to(device), test.to(device)
    y, y_test = (torch.from_numpy(labels).to(device) for labels in (data.y, data.y_test))
    count = len(data.names)
    space = linear.space(train, test, data.parts.fit)
    every = linear.all_labels(space, y, y_test, count, data.parts)
    few = linear.few_labels(space, y, y_test, count, data.parts, data.draws)
    near = knn.classify(train, y, test, settings.neighbours, settings.temperature)
    table = np.zeros((count, count), int)
    np.add.at(table, (data.y_test, every.predicted), 1)
    return Point(
        linear=every.test[0],
        penalty=every.penalty,
        grid=every.grid,
        few=few.test,
        few_penalty=few.penalty,
        few_grid=few.grid,
        knn=float((near == y_test).double().mean()),
        rankme=quality.rankme(train),
        spread=quality.spread(train),
        confusion=table.tolist(),
    )


def numbers(point: Point) -> dict[str, float]:
    """A row: fractions between 0 and 1. How many labels a class the few are stands in the protocol alone, so that
    rows of any setting lie in one card."""
    return {
        "linear_top1": point.linear,
        "linear_few": float(np.mean(point.few)),
        "linear_few_sd": float(np.std(point.few, ddof=1)),
        "knn_top1": point.knn,
    }


def summary(
    settings: Probe, seed: int, data: Data, curves: dict[str, dict[int, Point]], random: dict[str, list[str]]
) -> dict[str, Any]:
    """The artifact's metrics: rows, and the protocol without which no number appears."""
    protocol = {
        "n_train": len(data.y),
        "n_validation": len(data.parts.validation),
        "turns_of_validation": len(data.parts.turns),
        "n_test": len(data.y_test),
        "seed": seed,
        "per_class": settings.per_class,
        "draws": settings.draws,
        "penalties_all_labels": list(linear.ALL),
        "penalties_few_labels": list(linear.FEW),
        "k": settings.neighbours,
        "temperature": settings.temperature,
        "features": "of the encoder in evaluation mode, no augmentation; the probe's standardised on the fit part, "
        "kNN's on the unit sphere",
        "selection": "penalty by accuracy on validation (held out of the training split; of a small set, with all "
        f"labels, every part in turn), from the largest to {linear.PATIENCE:g} times below the best; with all labels "
        "refitted on fit and validation; test is read once",
        "sd": "over label draws (n - 1)",
        "untrained": {name: f"the network of {', '.join(owners)}" for name, owners in random.items()},
        "data": data.train.fingerprint,
    }
    return {"rows": {n: numbers(points[max(points)]) for n, points in curves.items()}, "protocol": protocol}


def results(metrics: dict[str, Any], curves: dict[str, dict[int, Point]], data: Data) -> dict[str, Any]:
    """All that was measured: each row along training, its selection grids, every label draw's accuracy (paired over
    rows, since the draws are shared) and keys."""
    rows = {}
    for name, points in curves.items():
        last = points[max(points)]
        rows[name] = {
            "steps": {str(s): {"linear_top1": p.linear, "few": p.few, "knn_top1": p.knn} for s, p in points.items()},
            "penalty": last.penalty,
            "validation": last.grid,
            "few_label_penalty": last.few_penalty,
            "few_label_validation": last.few_grid,
            "few_label_test": last.few,
            "rankme": last.rankme,
            "spread": last.spread,
            "confusion": last.confusion,
        }
    draws = [[data.train.key(int(i)) for i in ids] for ids in data.draws]
    return {**metrics, "rows": {n: metrics["rows"][n] | row for n, row in rows.items()}, "label_draws": draws}


def known(path: Path) -> Point | None:
    """A point of an earlier start, if it was written."""
    return Point(**json.loads(path.read_text())) if path.exists() else None


def write(path: Path, body: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(body, sort_keys=True) + "\n")
    part.replace(path)


def show(
    settings: Probe,
    data: Data,
    curves: dict[str, dict[int, Point]],
    tests: dict[str, Tensor],
    pictures: Pictures,
    metrics: dict[str, Any],
    out: Path,
) -> None:
    """TensorBoard: a sub-run a row, so that they overlay in one card; beside them the ladder and the protocol."""
    board = Board(out, -1)
    count = len(data.y_test)
    rows = {n: r | {"linear_top1_sd": sampling(r["linear_top1"], count)} for n, r in metrics["rows"].items()}
    board.image("probe/rows", 0, figures.accuracy_chart(rows))
    board.text("protocol", card(metrics))
    board.close()
    shown = np.arange(min(SHOWN, count))
    sprites = pictures.take(shown)
    labels = [data.names[c] for c in data.y_test[shown]]
    steps = [step for points in curves.values() for step in points]
    for name, points in curves.items():
        shutil.rmtree(out / name, ignore_errors=True)  # of a start that was cut off while it drew
        board = Board(out / name)
        last = points[max(points)]
        flat = {min(steps): last, max(steps): last}  # nothing that learns in steps: a line over the whole width
        for step, point in (points if len(points) > 1 else flat).items():
            row = {f"probe/{k}": v for k, v in numbers(point).items()}
            board.scalars(step, row | {"learn/rankme": point.rankme, "learn/std": point.spread})
        board.image("probe/neighbours", 0, alike(tests[name], pictures))
        title = f"{name}: {100 * last.linear:.1f} % of {count} test images, all labels"
        board.image("probe/confusion", 0, figures.confusion(np.array(last.confusion), data.names, title))
        board.embedding("features", reduced(tests[name][: len(shown)]), labels, sprites)
        told = {"encoder": name, "features": tests[name].shape[1], "penalty": last.penalty, "step": max(points)}
        board.hparams(told, [f"probe/{k}" for k in numbers(last)])
        board.close()


def alike(test: Tensor, pictures: Pictures) -> np.ndarray:
    """A test image at the left of each row, and the test images whose features are nearest to its own."""
    asked = torch.linspace(0, len(test) - 1, min(ASKED, len(test))).long()
    _, places = knn.neighbours(test, test[asked], ANSWERS + 1)
    return sheets.tile(pictures.take(places.flatten().numpy()).float() / 255, places.shape[1])


def reduced(rows: Tensor) -> Tensor:
    """Features [n, D] on their first principal axes [n, <= DIMS]: the projector reads text, so fewer numbers."""
    x = (rows - rows.mean(0)).double()
    return (x @ linear.axes(x).flip(1)[:, :DIMS]).float()


def card(metrics: dict[str, Any]) -> str:
    """Rows and protocol in Markdown."""
    rows, protocol = metrics["rows"], metrics["protocol"]
    lines = [f"| row | linear, all labels | linear, {protocol['per_class']} a class | kNN |", "|---|---|---|---|"]
    for name, row in rows.items():
        spread = 100 * sampling(row["linear_top1"], protocol["n_test"])
        lines.append(
            f"| {name} | {100 * row['linear_top1']:.2f} ± {spread:.2f} | {100 * row['linear_few']:.2f} ± "
            f"{100 * row['linear_few_sd']:.2f} | {100 * row['knn_top1']:.2f} |"
        )
    lines += ["", "Test accuracy, %. ± of all labels: of a finite test set; of few labels: over label draws.", ""]
    return "\n".join(lines + [f"- {key}: {plain(value)}" for key, value in protocol.items()])


def plain(value: Any) -> str:
    """As a person would write it: 1e-05, not 9.999999999999999e-06."""
    if isinstance(value, dict):
        return "; ".join(f"{name}: {what}" for name, what in value.items())
    return ", ".join(f"{v:.3g}" for v in value) if isinstance(value, list) else str(value)


def sampling(p: float, n: int) -> float:
    """Standard deviation of an accuracy p seen on n samples: binomial."""
    return math.sqrt(p * (1 - p) / n)
