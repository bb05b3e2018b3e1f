"""What a probe found: its rows with their protocol, everything that was measured, and its part of TensorBoard."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.board import Board
from pipeline.data.images import SquareImages
from pipeline.evaluation import figures, linear
from pipeline.evaluation.scores import Data, Scores
from pipeline.settings.stages import Probe

PROJECTED = 2000  # test samples in the projector
DIMS = 50  # principal axes of the features there

Curves = dict[str, dict[int, Scores]]
"""A row's scores by training step; the last step is that of the finished encoder."""


def metrics(settings: Probe, seed: int, data: Data, curves: Curves, untrained: dict[str, list[str]]) -> dict[str, Any]:
    """The artifact's metrics: rows, and the protocol without which no number appears. ``untrained``: the encoders
    whose network each untrained row is."""
    rows = {name: points[max(points)].row() for name, points in curves.items()}
    return {"rows": rows, "protocol": protocol(settings, seed, data, untrained)}


def protocol(settings: Probe, seed: int, data: Data, untrained: dict[str, list[str]]) -> dict[str, Any]:
    """How the numbers were got: sizes, seed, and how each choice was made."""
    heads = {"projection": "rows NAME_projection: the output of the head, in place of the encoder's features"}
    return {
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
        f"labels, every part in turn), from the largest to {linear.SEARCH_RANGE:g} times below the best; with all "
        "labels refitted on fit and validation; test is read once",
        "sd": "over label draws (n - 1)",
        "untrained": {name: f"the network of {', '.join(owners)}" for name, owners in untrained.items()},
        "data": data.train.fingerprint,
    } | (heads if settings.projection else {})


def results(metrics: dict[str, Any], curves: Curves, data: Data, untrained: dict[str, list[str]]) -> dict[str, Any]:
    """All that was measured: each row along training, its selection grids, every label draw's accuracy (paired over
    rows, since the draws are shared) and keys; the classes' names, and the encoders whose network each untrained row
    is."""
    rows = {name: metrics["rows"][name] | details(points) for name, points in curves.items()}
    draws = [[data.train.key(int(i)) for i in ids] for ids in data.draws]
    return {**metrics, "rows": rows, "label_draws": draws, "classes": data.names, "untrained": untrained}


def details(points: dict[int, Scores]) -> dict[str, Any]:
    """What `results` adds to one row."""
    last = points[max(points)]
    steps = {s: {"linear_top1": p.linear, "linear_few": p.few, "knn_top1": p.knn} for s, p in points.items()}
    return {
        "steps": {str(step): accuracies for step, accuracies in steps.items()},
        "penalty": last.penalty,
        "validation": last.grid,
        "few_label_penalty": last.few_penalty,
        "few_label_validation": last.few_grid,
        "few_label_test": last.few,
        "rankme": last.rankme,
        "spread": last.spread,
        "confusion": last.confusion,
    }


def write(
    data: Data,
    curves: Curves,
    tests: dict[str, Tensor],
    pictures: tuple[SquareImages, SquareImages],
    metrics: dict[str, Any],
    out: Path,
) -> None:
    """TensorBoard's pages: a sub-run a row, so that they overlay in one card; beside them the accuracy chart and the
    protocol. ``tests``: each row's features of the test images, [m, D]; ``pictures``: those images, small and
    large."""
    small, large = pictures
    board = Board(out, -1)
    count = len(data.y_test)
    rows = {n: r | {"linear_top1_sd": binomial_sd(r["linear_top1"], count)} for n, r in metrics["rows"].items()}
    steps = [step for points in curves.values() for step in points]
    board.image("accuracy/rows", max(steps), figures.accuracy_chart(rows).of(f"Data {Path(data.test.folder).name}."))
    board.text("protocol", card(metrics))
    board.close()
    shown = np.arange(min(PROJECTED, count))
    sprites, labels = small.take(shown), [data.names[c] for c in data.y_test[shown]]
    for name, points in curves.items():
        shutil.rmtree(out / name, ignore_errors=True)  # of a start that was cut off while it drew
        board = Board(out / name)
        # A row that nothing trains is a level line over the whole width.
        level = {min(steps): points[max(points)], max(steps): points[max(points)]}
        write_curve(board, points if len(points) > 1 else level, count)
        write_figures(board, name, data, points, tests[name], large)
        board.embedding("features", principal(tests[name][: len(shown)]), labels, sprites)
        board.close()


def write_curve(board: Board, points: dict[int, Scores], count: int) -> None:
    """A row's scalars at each step, and the band of one deviation about each accuracy. ``count``: test images."""
    for step, scores in points.items():
        row = scores.row()
        deviations = {name: binomial_sd(row[name], count) for name in ("linear_top1", "knn_top1")}
        values = {"collapse/feature_rankme": scores.rankme, "collapse/feature_std": scores.spread}
        for name, sd in (deviations | {"linear_few": row["linear_few_sd"]}).items():
            band = {f"range/{name}_low": row[name] - sd, f"range/{name}_high": row[name] + sd}
            values |= {f"accuracy/{name}": row[name]} | band
        board.scalars(step, values)


def write_figures(
    board: Board, name: str, data: Data, points: dict[int, Scores], test: Tensor, pictures: SquareImages
) -> None:
    """A row's images: nearest neighbours of some test images, and the confusion table."""
    step, source = max(points), f"Data {Path(data.test.folder).name}."
    near = figures.neighbours(test, data.y_test, pictures, data.names, name)
    table = figures.confusion(np.array(points[step].confusion), data.names, name)
    board.image("neighbours", step, near.of(source))
    board.image("confusion", step, table.of(source))


def principal(rows: Tensor) -> Tensor:
    """Features [n, D] on their first principal axes [n, <= DIMS]: the projector reads text, so fewer numbers."""
    x = (rows - rows.mean(0)).double()
    return (x @ linear.axes(x).flip(1)[:, :DIMS]).float()


def card(metrics: dict[str, Any]) -> str:
    """Rows and protocol in Markdown."""
    rows, protocol = metrics["rows"], metrics["protocol"]
    lines = [f"| row | linear, all labels | linear, {protocol['per_class']} a class | kNN |", "|---|---|---|---|"]
    for name, row in rows.items():
        sd = 100 * binomial_sd(row["linear_top1"], protocol["n_test"])
        lines.append(
            f"| {name} | {100 * row['linear_top1']:.2f} ± {sd:.2f} | {100 * row['linear_few']:.2f} ± "
            f"{100 * row['linear_few_sd']:.2f} | {100 * row['knn_top1']:.2f} |"
        )
    lines += ["", "Test accuracy, %. ± of all labels: of a finite test set; of few labels: over label draws.", ""]
    return "\n".join(lines + [f"- {key}: {plain(value)}" for key, value in protocol.items()])


def plain(value: Any) -> str:
    """The number as a person would write it: 1e-05, not 9.999999999999999e-06."""
    if isinstance(value, dict):
        return "; ".join(f"{name}: {what}" for name, what in value.items())
    return ", ".join(f"{v:.3g}" for v in value) if isinstance(value, list) else str(value)


def binomial_sd(p: float, n: int) -> float:
    """Standard deviation of an accuracy p seen on n samples."""
    return math.sqrt(p * (1 - p) / n)
