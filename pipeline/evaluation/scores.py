"""What one encoder scores: the data that all are evaluated on alike, and the numbers that come of it."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.data.shards import Shards
from pipeline.errors import DataError
from pipeline.evaluation import knn, linear, quality, requirements
from pipeline.lines import legible
from pipeline.settings.stages import Probe


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
class Scores:
    """One encoder's numbers: accuracies on test, the penalties chosen with the validation accuracies they were chosen
    by, each label draw's accuracy, the confusion table of all labels (true class down), label-free quality.
    ``predicted``: the test classes behind each accuracy of its row, int32 [m], of few labels [draws, m]; they have a
    file of their own, and are not there when the others were read from one."""

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
    predicted: dict[str, Tensor] = field(default_factory=dict, compare=False)

    def numbers(self) -> dict[str, Any]:
        """All but what was predicted, as JSON takes it."""
        return {name: value for name, value in asdict(self).items() if name != "predicted"}

    def row(self) -> dict[str, float]:
        """Its row in the probe's table: fractions between 0 and 1. How many labels a class the few are stands in the
        protocol alone, so that rows of any setting lie in one card."""
        return {
            "linear_top1": self.linear,
            "linear_few": float(np.mean(self.few)),
            "linear_few_sd": float(np.std(self.few, ddof=1)),
            "knn_top1": self.knn,
        }


def load(settings: Probe, seed: int, folder: Path) -> Data:
    """The labelled splits of a folder of shards, their parts and label draws. Raises DataError where an image has no
    label, or where there are too few."""
    train, test = Shards.open(folder, "train"), Shards.open(folder, "test")
    y, y_test = requirements.labels(settings, folder, train, test)
    names = [legible(n) for n in train.classes or ()] or [str(c) for c in range(int(max(y.max(), y_test.max())) + 1)]
    parts = linear.split(y, settings.validation, seed)
    draws = [linear.draw(y, parts.fit, settings.per_class, seed, i) for i in range(settings.draws)]
    return Data(train, test, y, y_test, parts, draws, names)


def evaluate(settings: Probe, data: Data, name: str, train: Tensor, test: Tensor, device: torch.device) -> Scores:
    """The scores of the encoder of that name, from its features of both splits, [n, D] and [m, D]."""
    if not (torch.isfinite(train).all() and torch.isfinite(test).all()):
        raise DataError(f"{name}: its features are not all finite; train it again with a lower learning rate")
    train, test = train.to(device), test.to(device)
    y, y_test = (torch.from_numpy(labels).to(device) for labels in (data.y, data.y_test))
    count = len(data.names)
    space = linear.space(train, test, data.parts.fit)
    every = linear.all_labels(space, y, y_test, count, data.parts)
    few = linear.few_labels(space, y, y_test, count, data.parts, data.draws)
    near = knn.classify(train, y, test, settings.neighbours, settings.temperature)
    return Scores(
        linear=every.test[0],
        penalty=every.penalty,
        grid=every.grid,
        few=few.test,
        few_penalty=few.penalty,
        few_grid=few.grid,
        knn=float((near == y_test).double().mean()),
        rankme=quality.rankme(train),
        spread=quality.spread(train),
        confusion=confusion(data.y_test, every.predicted[0], count),
        predicted=predicted(every.predicted[0], few.predicted, near),
    )


def predicted(every: np.ndarray, few: np.ndarray, near: Tensor) -> dict[str, Tensor]:
    """Test classes by the accuracy that they are behind, as `Scores` has them."""
    classes = {"linear_top1": torch.from_numpy(every), "linear_few": torch.from_numpy(few), "knn_top1": near}
    return {name: numbers.to(torch.int32) for name, numbers in classes.items()}


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int) -> list[list[int]]:
    """How many samples of each class (down) were taken for which (across)."""
    table = np.zeros((classes, classes), int)
    np.add.at(table, (truth, predicted), 1)
    return table.tolist()
