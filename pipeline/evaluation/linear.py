"""The linear probe: multinomial logistic regression on frozen features, its penalty chosen where the test is not.

Objective: mean cross-entropy of X W + b plus penalty/2 ||W||^2 (scikit-learn's C is 1 / (n penalty)). Solved by
L-BFGS in float64 from the largest penalty down, each warm-started from the last, in the features' principal axes
scaled by (their variance + K penalty)^-1/2, where the problem is nearly round.
"""

from dataclasses import dataclass

import numpy as np

from pipeline import keyed
from pipeline.errors import DataError

PENALTIES = tuple(float(p) for p in np.logspace(1, -5, 13))
"""Tried from the first to the last; the largest wins a tie."""


@dataclass(frozen=True)
class Split:
    """Ids of the training split by use: where classifiers are fitted, and where the penalty is chosen."""

    fit: np.ndarray
    validation: np.ndarray


def split(labels: np.ndarray, share: float, seed: int) -> Split:
    """A stratified division of labelled samples [n]: of each class, the first ``share`` in a keyed order validates."""
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = keyed.permute(np.arange(len(members)), len(members), seed, "validation", int(label))
        held[members[order[: round(share * len(members))]]] = True
    return Split(np.flatnonzero(~held), np.flatnonzero(held))


def draw(labels: np.ndarray, among: np.ndarray, per_class: int, seed: int, index: int) -> np.ndarray:
    """Draw ``index``: ids of ``per_class`` samples of every class, out of ``among``; the same for every encoder."""
    chosen = []
    for label in np.unique(labels[among]):
        members = among[labels[among] == label]
        if len(members) < per_class:
            raise DataError(f"class {label}: {len(members)} samples, {per_class} labels to draw: lower per_class")
        order = keyed.permute(np.arange(per_class), len(members), seed, "draw", index, int(label))
        chosen.append(members[order])
    return np.concatenate(chosen)


@dataclass(frozen=True)
class Scale:
    """Standardisation: mean and deviation of each feature, [D]; a constant feature is left at 0."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> "Scale":
        mean, std = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
        return cls(mean, np.where(std > 1e-7 * max(std.max(), 1e-300), std, np.inf))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return (features - self.mean) / self.std


def path(x: np.ndarray, y: np.ndarray, classes: int, penalties: tuple[float, ...] = PENALTIES) -> list[np.ndarray]:
    """Minimisers for each penalty, [D + 1, classes] with the intercepts last, of x [n, D] and y [n]."""
    from scipy.optimize import minimize

    n, d = x.shape
    # The minimiser lies in the span of the samples: rotate into it, and shrink to its rank where n < d.
    if n < d:
        _, values, axes = np.linalg.svd(x, full_matrices=False)
        axes, variance = axes.T, values**2 / n
    else:
        variance, axes = np.linalg.eigh(x.T @ x / n)
    u = x @ axes
    target = np.zeros((n, classes))
    target[np.arange(n), y] = 1
    weights, bias = np.zeros((u.shape[1], classes)), np.log(np.maximum(target.mean(0), 1e-12))
    found = []
    for penalty in penalties:
        shape = 1 / np.sqrt(np.maximum(variance, 0) + classes * penalty)[:, None]

        def loss(flat: np.ndarray, penalty=penalty, shape=shape) -> tuple[float, np.ndarray]:
            table = flat.reshape(-1, classes)
            w, b = table[:-1] * shape, table[-1]
            logits = u @ w + b
            logits -= logits.max(1, keepdims=True)
            total = np.exp(logits).sum(1, keepdims=True)
            value = (np.log(total[:, 0]) - (logits * target).sum(1)).mean() + 0.5 * penalty * (w * w).sum()
            error = (np.exp(logits) / total - target) / n
            gradient = np.concatenate([(u.T @ error + penalty * w) * shape, error.sum(0, keepdims=True)])
            return value, gradient.ravel()

        start = np.concatenate([weights / shape, bias[None]]).ravel()
        options = {"maxiter": 500, "gtol": 1e-6, "ftol": 1e-12}
        table = minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x.reshape(-1, classes)
        weights, bias = table[:-1] * shape, table[-1]
        found.append(np.concatenate([axes @ weights, bias[None]]))
    return found


def predict(x: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Class of each row of x [n, D] -> [n]."""
    return (x @ table[:-1] + table[-1]).argmax(1)


def accuracy(x: np.ndarray, y: np.ndarray, table: np.ndarray) -> float:
    return float((predict(x, table) == y).mean())


@dataclass(frozen=True)
class Result:
    """``validation``: accuracy on validation by penalty; ``penalty``: the one chosen; ``test``: accuracies on test,
    one of all labels or one of each label draw; ``predicted``: classes of the test samples (of the first draw)."""

    validation: list[float]
    penalty: float
    test: list[float]
    predicted: np.ndarray


def all_labels(train: np.ndarray, y: np.ndarray, test: np.ndarray, y_test: np.ndarray, parts: Split) -> Result:
    """Penalty chosen on validation, then refitted on fit and validation together; test is read once."""
    scale, classes = Scale.of(train[parts.fit]), int(y.max()) + 1
    x = scale(train)
    tables = path(x[parts.fit], y[parts.fit], classes)
    scores = [accuracy(x[parts.validation], y[parts.validation], t) for t in tables]
    best = int(np.argmax(scores))
    table = path(x, y, classes, PENALTIES[: best + 1])[-1]
    predicted = predict(scale(test), table)
    return Result(scores, PENALTIES[best], [float((predicted == y_test).mean())], predicted)


def few_labels(
    train: np.ndarray, y: np.ndarray, test: np.ndarray, y_test: np.ndarray, parts: Split, draws: list[np.ndarray]
) -> Result:
    """One penalty for all draws, by their mean accuracy on validation; test is read once, by each draw's classifier.
    Features are standardised by the fit part, whose labels that does not use."""
    scale, classes = Scale.of(train[parts.fit]), int(y.max()) + 1
    x = scale(train)
    tables = [path(x[ids], y[ids], classes) for ids in draws]
    held, truth = x[parts.validation], y[parts.validation]
    scores = np.array([[accuracy(held, truth, t) for t in path_] for path_ in tables]).mean(0)
    best = int(np.argmax(scores))
    predicted = [predict(scale(test), path_[best]) for path_ in tables]
    return Result(scores.tolist(), PENALTIES[best], [float((p == y_test).mean()) for p in predicted], predicted[0])
