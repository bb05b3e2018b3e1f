"""The linear probe: multinomial logistic regression on frozen features, its penalty chosen where the test is not.

Objective: mean cross-entropy of X W + b, plus penalty/2 ||W||^2 (scikit-learn's C is 1 / (n penalty)). Solved from the
largest penalty down, each start warm, in the features' principal axes, where the Hessian is nearly diagonal: its
diagonal scales each weight. The axes are shared by the whole path.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pipeline import keyed
from pipeline.errors import DataError
from pipeline.evaluation.lbfgs import minimise

FEW = tuple(float(p) for p in np.logspace(2, -5, 15))
ALL = FEW[::2]
"""Penalties tried on few labels and on all, from the first to the last, or to SEARCH_RANGE times below the best; the
largest wins a tie. The last is nearly the widest margin; whole decades where a fit takes long."""
SEARCH_RANGE = 100.0
ENOUGH = 5000
"""Samples of validation whose accuracy has a deviation below 0.7 points. Of fewer, one part's choice is a lottery: by
400 of 2,000 CIFAR-10 images, PIRL's test accuracy had a deviation of 2 points over seeds; by all in turn, of 0.7."""
ROUGH, CLOSE, FINE = 2e-3, 1e-4, 1e-5
"""Norms of the scaled gradient at which a solution stands: objective within 1e-4 of its minimum while penalties are
compared on all labels, 1e-6 on few, and 1e-8 in what is reported (measured on digits, pixels and codes)."""
CACHE = 1 << 17
"""Numbers of the feature matrix that a processor takes at a time, to read them from memory once a pass."""
DOUBLE = 1 << 28
"""Numbers of the feature matrix up to which all is float64; float32 above."""


@dataclass(frozen=True)
class Split:
    """Ids of the training split by use: where classifiers are fitted, and where the penalty is chosen; of a small set,
    ``others``: parts that take validation's turn (cross-validation)."""

    fit: np.ndarray
    validation: np.ndarray
    others: tuple[np.ndarray, ...] = ()

    @property
    def turns(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Pairs of ids: those to fit on, and those to validate on."""
        every = np.sort(np.concatenate([self.fit, self.validation]))
        return [(np.setdiff1d(every, held, assume_unique=True), held) for held in (self.validation, *self.others)]


def split(labels: np.ndarray, share: float, seed: int) -> Split:
    """A stratified division of labelled samples [n]: of each class, the first ``share`` in a keyed order validates.
    Where those are fewer than ENOUGH, the others follow in parts as large, so that every sample has its turn."""
    part = np.zeros(len(labels), int)
    parts = round(1 / share) if share * len(labels) < ENOUGH else 2
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = keyed.permute(np.arange(len(members)), len(members), seed, "validation", int(label))
        held = round(share * len(members))
        rest = np.arange(len(members) - held)
        part[members[order[held:]]] = 1 + rest * (parts - 1) // max(1, len(rest))
    every = [np.flatnonzero(part == k) for k in range(max(2, parts))]
    if not all(map(len, every[:2])):
        raise DataError(f"{len(labels)} labelled images are too few to hold out {share:g} of each class")
    return Split(np.flatnonzero(part), every[0], tuple(every[1:]) if parts > 2 else ())


def draw(labels: np.ndarray, among: np.ndarray, per_class: int, seed: int, index: int) -> np.ndarray:
    """Draw ``index``: ids of ``per_class`` samples of every class, out of ``among``; the same for every encoder."""
    ids = []
    for label in np.unique(labels[among]):
        members = among[labels[among] == label]
        if len(members) < per_class:
            raise DataError(f"class {label}: {len(members)} samples, {per_class} labels to draw: lower per_class")
        order = keyed.permute(np.arange(per_class), len(members), seed, "draw", index, int(label))
        ids.append(members[order])
    return np.concatenate(ids)


class Space(NamedTuple):
    """Features as the classifiers take them, standardised by the fit part and turned into principal axes: training
    split u [n, r], test split [m, r]."""

    train: Tensor
    test: Tensor


def space(train: Tensor, test: Tensor, fit: np.ndarray) -> Space:
    """Features [n, D], [m, D] -> Space. Turning changes no classifier's answers; with fewer samples than dimensions,
    r = n, since weights lie in the span of the samples. A feature that is constant on the fit part becomes 0."""
    dtype = torch.float64 if train.numel() <= DOUBLE else torch.float32
    x, x_test = train.to(dtype), test.to(dtype)
    part = x[torch.from_numpy(fit).to(x.device)]
    mean, std = part.mean(0), part.std(0, correction=0)
    std = torch.where(std > 1e-7 * std.max(), std, torch.inf)
    del part
    x, x_test = (x - mean) / std, (x_test - mean) / std
    turn = axes(x)
    return Space(x @ turn, x_test @ turn)


def axes(x: Tensor) -> Tensor:
    """Principal axes [..., D, min(n, D)] of the rows of x [..., n, D]."""
    n, d = x.shape[-2:]
    span = torch.linalg.qr(x.mT).Q if n < d else None
    inside = x if span is None else x @ span
    turn = torch.linalg.eigh(inside.mT @ inside / n).eigenvectors
    return turn if span is None else span @ turn


def path(
    u: Tensor,
    y: Tensor,
    classes: int,
    penalties: Iterable[float],
    tolerance: float = FINE,
    start: Tensor | None = None,
) -> Iterator[Tensor]:
    """Minimisers for each penalty in turn, [P, r + 1, classes] with the intercepts last, of P problems side by side:
    u [P, n, r] in principal axes, y [P, n]. ``start``: where the first search begins (default: class shares)."""
    problems, n, r = u.shape
    if start is None:
        table = u.new_zeros(problems, r + 1, classes)
        table[:, -1] = one_hot(y, classes).to(u.dtype).mean(1).clamp_min(1e-12).log()
    else:
        table = start
    rows = n if u.is_cuda else max(64, CACHE // r)
    parts = list(zip(u.split(rows, 1), y[..., None].split(rows, 1), strict=True))

    def logs(part: Tensor, weights: Tensor) -> Tensor:
        return torch.log_softmax(part @ weights[:, :-1] + weights[:, -1:], -1)

    for penalty in penalties:
        diagonal = torch.full_like(table, penalty)
        for part, _ in parts:
            p = logs(part, table).exp_()
            q = p * (1 - p) / n
            diagonal[:, :-1] += (q.mT @ part.square()).mT
            diagonal[:, -1] += q.sum(1)
        shape = diagonal.rsqrt()

        def loss(flat: Tensor, penalty: float = penalty, shape: Tensor = shape) -> tuple[Tensor, Tensor]:
            weights = flat.view(shape.shape) * shape
            value = 0.5 * penalty * weights[:, :-1].square().sum((1, 2))
            slope = penalty * weights
            slope[:, -1] = 0
            for part, truth in parts:
                log = logs(part, weights)
                value -= log.gather(-1, truth).sum((1, 2)) / n
                error = log.exp_().scatter_add_(-1, truth, log.new_full(truth.shape, -1)) / n
                slope[:, :-1] += (error.mT @ part).mT
                slope[:, -1] += error.sum(1)
            return value, (slope * shape).flatten(1)

        table = minimise(loss, (table / shape).flatten(1), tolerance).view(shape.shape) * shape
        yield table


def predict(u: Tensor, table: Tensor) -> Tensor:
    """Classes of the rows of u [n, r] under each of P tables [P, r + 1, classes] -> [P, n]."""
    return torch.stack([(u @ weights[:-1] + weights[-1]).argmax(-1) for weights in table])


def accuracies(u: Tensor, y: Tensor, table: Tensor) -> list[float]:
    """The accuracy of each table."""
    return (predict(u, table) == y).double().mean(1).tolist()


class Choice(NamedTuple):
    """``grid``: (penalty, accuracy on validation) as tried; ``penalty``: the best; ``table``: its solution."""

    grid: list[tuple[float, float]]
    penalty: float
    table: Tensor


def choose(penalties: Sequence[float], solutions: Iterator[Tensor], score: Callable[[Tensor], float]) -> Choice:
    """Goes down the path to its end, or to a penalty SEARCH_RANGE times smaller than the best so far."""
    table = next(solutions)
    grid = [(penalties[0], score(table))]
    best = Choice(grid, penalties[0], table)
    high = grid[0][1]
    for penalty, table in zip(penalties[1:], solutions, strict=False):
        grid.append((penalty, score(table)))
        if grid[-1][1] > high:
            best, high = Choice(grid, penalty, table), grid[-1][1]
        if penalty * SEARCH_RANGE < best.penalty * 1.001:  # rounding
            break
    return best


@dataclass(frozen=True)
class Result:
    """``grid``: (penalty, accuracy on validation) as tried; ``penalty``: the one chosen; ``test``: accuracies on test,
    one of all labels or one of each label draw; ``predicted``: the test classes behind each, int64 [1 or draws, m]."""

    grid: list[tuple[float, float]]
    penalty: float
    test: list[float]
    predicted: np.ndarray


def all_labels(features: Space, y: Tensor, y_test: Tensor, classes: int, parts: Split) -> Result:
    """Penalty chosen on validation, or on all parts in turn, then refitted on all; test is read once."""
    turns = [(torch.from_numpy(fit).to(y.device), torch.from_numpy(held).to(y.device)) for fit, held in parts.turns]
    paths = [path(features.train[fit][None], y[fit][None], classes, ALL, ROUGH) for fit, _ in turns]

    def score(tables: Tensor) -> float:
        pairs = zip(turns, tables, strict=True)
        right = [predict(features.train[held], weights[None])[0] == y[held] for (_, held), weights in pairs]
        return float(torch.cat(right).double().mean())

    choice = choose(ALL, map(torch.cat, zip(*paths, strict=True)), score)
    (table,) = path(features.train[None], y[None], classes, [choice.penalty], start=choice.table[:1])
    return result(features, y_test, choice, table)


def few_labels(
    features: Space, y: Tensor, y_test: Tensor, classes: int, parts: Split, draws: list[np.ndarray]
) -> Result:
    """One penalty for all draws, by their mean accuracy on validation; test is read once, by each draw's classifier.
    Features are standardised by the fit part, whose labels that does not use."""
    held = torch.from_numpy(parts.validation).to(y.device)
    ids = torch.from_numpy(np.stack(draws)).to(y.device)
    u_held, x = features.train[held], features.train[ids]
    turn = axes(x)
    u, labels = x @ turn, y[ids]

    def back(table: Tensor) -> Tensor:
        """Turns tables from each draw's own axes back to the shared axes."""
        return torch.cat([turn @ table[:, :-1], table[:, -1:]], 1)

    choice = choose(
        FEW,
        path(u, labels, classes, FEW, CLOSE),
        lambda table: float(np.mean(accuracies(u_held, y[held], back(table)))),
    )
    (table,) = path(u, labels, classes, [choice.penalty], start=choice.table)
    return result(features, y_test, choice, back(table))


def result(features: Space, y_test: Tensor, choice: Choice, table: Tensor) -> Result:
    predicted = predict(features.test, table)
    return Result(
        choice.grid, choice.penalty, (predicted == y_test).double().mean(1).tolist(), predicted.cpu().numpy()
    )
