"""95 % intervals of how much one encoder is ahead of another in test accuracy, from paired differences alone: two rows
of a probe see the same test images and learn from the same label draws, whose luck they share.

    of_images(right, other)   one seed: covers other label draws and other test images
    of_seeds(differences)     several seeds: covers what a seed decides
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.95


class Interval(NamedTuple):
    """``mean`` of the differences in accuracy, and the interval from ``low`` to ``high`` that holds their expectation
    in 95 of 100 cases."""

    mean: float
    low: float
    high: float


def student(mean: float, variance: float, freedom: float) -> tuple[float, float]:
    """Student's interval of a mean whose estimate has that variance, of so many degrees of freedom."""
    from scipy.special import stdtrit

    width = float(stdtrit(freedom, (1 + LEVEL) / 2)) * variance**0.5
    return mean - width, mean + width


def of_images(right: np.ndarray, other: np.ndarray) -> Interval:
    """How much more often one row is right than another, bool [draws, images] each, of one draw where none is made.

    Draws and images are both samples of others: a table of two crossed random effects. The variance of its mean is
    (MS draws + MS images - MS rest) / cells, here never less than either of the first two gives alone, and Student's
    degrees of freedom are those of the draws. Two images are added to the table, one that each row alone has right:
    rows that differ on none of few images may differ on others. With one draw this is the adjusted Wald interval of
    Bonett and Price (2012), by Student's quantile. It lies around the larger table's mean, a little nearer to 0.
    """
    difference = right.astype(float) - other.astype(float)
    draws, images = difference.shape
    table = np.concatenate([difference, np.ones((draws, 1)), -np.ones((draws, 1))], 1)
    by_image = draws * table.mean(0).var(ddof=1)
    square, freedom = by_image, images + 1
    if draws > 1:
        by_draw, freedom = (images + 2) * table.mean(1).var(ddof=1), draws - 1
        rest = table - table.mean(0) - table.mean(1)[:, None] + table.mean()
        square = max(by_draw + by_image - (rest**2).sum() / (freedom * (images + 1)), by_draw, by_image)
    low, high = student(table.mean(), square / table.size, freedom)
    return Interval(float(difference.mean()), float(max(low, -1)), float(min(high, 1)))


def of_seeds(differences: Sequence[np.ndarray]) -> Interval:
    """Of paired differences in accuracy, a row of label draws or of test images for each seed.

    Student's with a degree of freedom less than seeds, by the larger of two variances of a seed's mean: that between
    seeds, and that within them. Of three seeds that happen to agree the first alone would promise too much. It covers
    what a seed decides: a split held out by it, first weights, order, views, label draws; not other images than
    these, another processor's rounding, or settings that were chosen by looking at such numbers.
    """
    means = np.array([row.mean() for row in differences])
    within = np.mean([row.var(ddof=1) / len(row) for row in differences])
    variance = max(means.var(ddof=1), within) / len(means)
    return Interval(float(means.mean()), *student(float(means.mean()), float(variance), len(means) - 1))
