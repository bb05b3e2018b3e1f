"""Intervals hold what they promise, whatever varies most: seeds, label draws or test images."""

import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation import intervals


@pytest.mark.parametrize(("between", "within"), [(0.0, 1.0), (0.3, 1.0), (1.0, 1.0), (3.0, 1.0)])
def test_an_interval_covers_the_mean_as_often_as_it_says(between, within):
    draw = np.random.default_rng(0)
    tables = between * draw.normal(size=(2000, 3, 1)) + within * draw.normal(size=(2000, 3, 10))
    found = np.array([intervals.of_seeds(table + 7) for table in tables])
    share = ((found[:, 1] < 7) & (found[:, 2] > 7)).mean()
    assert share > 0.94
    if between >= 1:
        assert share < 0.97  # and no more: Student's over the seeds' means


def test_seeds_that_agree_by_chance_promise_no_more_than_their_draws():
    mean, low, high = intervals.of_seeds(np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]]))
    assert mean == (low + high) / 2 == pytest.approx(2)
    assert high - 2 == pytest.approx(stats.t.ppf(0.975, 2) * ((2 + 0 + 2) / 3 / 6) ** 0.5)


def right(rng: np.random.Generator, ease: np.ndarray, of_draws: float, draws: int) -> np.ndarray:
    """A row's answers, bool [draws, images]: by how easy each image is, how good each draw's labels are, and luck."""
    return ease + of_draws * rng.normal(size=(draws, 1)) + rng.normal(size=(draws, len(ease))) > 0


@pytest.mark.parametrize(
    ("draws", "of_draws", "of_images"), [(10, 0.3, 1.5), (10, 0.0, 1.5), (10, 0.5, 0.2), (1, 0.0, 2.0)]
)
def test_a_lead_on_one_test_set_covers_that_of_other_draws_and_images(draws, of_draws, of_images):
    """Two rows that are as good as each other: 0 is outside of one interval in twenty, or fewer."""
    rng, outside = np.random.default_rng(0), 0
    for _ in range(400):
        ease = 1.5 + of_images * rng.normal(size=200)
        pair = [right(rng, ease + 0.5 * rng.normal(size=200), of_draws, draws) for _ in range(2)]
        _, low, high = intervals.of_images(*pair)
        outside += not low < 0 < high
    assert outside / 400 < 0.07


def test_of_one_draw_it_is_bonetts_and_prices_interval():
    """Bonett and Price (2012), section 3: p = (f + 1) / (n + 2) of either kind of discordant pair."""
    one, other = np.zeros((1, 50), bool), np.zeros((1, 50), bool)
    one[0, :9], other[0, 9:12] = True, True
    mean, low, high = intervals.of_images(one, other)
    assert mean == pytest.approx(6 / 50)
    p, q = 10 / 52, 4 / 52
    width = stats.t.ppf(0.975, 51) * ((p + q - (p - q) ** 2) / 51) ** 0.5  # of a sample: n + 1 in the place of n + 2
    assert (low, high) == pytest.approx((p - q - width, p - q + width))


def test_rows_that_are_alike_on_every_image_may_differ_on_others():
    same = np.ones((3, 40), bool)
    mean, low, high = intervals.of_images(same, same)
    assert mean == 0 and low == -high < 0
