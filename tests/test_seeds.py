"""The lead's interval holds what it promises, whether seeds or draws vary most."""

import numpy as np
import pytest
from scipy import stats

from benchmarks import seeds


@pytest.mark.parametrize(("between", "within"), [(0.0, 1.0), (0.3, 1.0), (1.0, 1.0), (3.0, 1.0)])
def test_an_interval_covers_the_mean_as_often_as_it_says(between, within):
    draw = np.random.default_rng(0)
    tables = between * draw.normal(size=(2000, 3, 1)) + within * draw.normal(size=(2000, 3, 10))
    found = np.array([seeds.interval(table + 7) for table in tables])
    share = ((found[:, 0] < 7) & (found[:, 1] > 7)).mean()
    assert share > 0.94
    if between >= 1:
        assert share < 0.97  # and no more: Student's over the seeds' means


def test_seeds_that_agree_by_chance_promise_no_more_than_their_draws():
    table = np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])
    low, high = seeds.interval(table)
    assert (low + high) / 2 == pytest.approx(2)
    assert high - 2 == pytest.approx(stats.t.ppf(0.975, 2) * ((2 + 0 + 2) / 3 / 6) ** 0.5)
