"""Which sample stands where: exact permutations with an inverse, that look random, and shares that join."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import keyed
from pipeline.data.order import BatchSampler, Sampler
from pipeline.errors import ConfigError

WINDOWS = (None, 1, 2, 3, 7, 16, 40)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 90), min_size=1, max_size=24).filter(sum), st.sampled_from(WINDOWS), st.integers(0, 99))
def test_every_sample_once_and_back(counts, window, seed):
    order = Sampler(np.array(counts), seed, window)
    for epoch in (0, 1):
        there = order.ids(epoch, np.arange(order.n))
        assert np.array_equal(np.sort(there), np.arange(sum(counts)))
        assert np.array_equal(order.positions(epoch, there), np.arange(order.n))


@pytest.mark.parametrize("window", [None, 16, 64])
def test_a_million_positions_of_a_billion_and_back(window):
    counts = np.full(100_000, 10_000)
    counts[::7] -= 1_234
    order = Sampler(counts, 5, window)
    places = np.random.default_rng(0).integers(0, order.n, 200_000 if window else 1_000_000)
    for part in np.array_split(places, 50):
        ids = order.ids(3, part)
        assert ids.min() >= 0 and ids.max() < order.n
        assert np.array_equal(order.positions(3, ids), part)


def test_a_position_does_not_depend_on_company():
    order = Sampler(np.array([100, 37, 260, 5, 90]), 1, 2)
    whole = order.ids(2, np.arange(order.n))
    assert [int(order.ids(2, np.array([p]))[0]) for p in range(order.n)] == whole.tolist()
    scattered = np.random.default_rng(0).permutation(order.n)
    assert np.array_equal(order.ids(2, scattered), whole[scattered])


def test_sliding_slices_by_hand():
    """The rule of the file's head, in plain loops."""
    counts, seed, epoch, w = [50, 31, 80, 7, 66, 12], 9, 4, 3
    s, starts = len(counts), np.cumsum([0, *counts])
    ranked = keyed.permute(np.arange(s), s, seed, epoch, "shard").tolist()
    bins = [[] for _ in range(s)]
    for j in range(w):
        for i, shard in enumerate(ranked):
            m = counts[shard]
            inner = keyed.permute(np.arange(m), m, seed, epoch, "inner", np.full(m, shard)).tolist()
            bins[(i + j) % s].append((j, [starts[shard] + x for x in inner[m * j // w : m * (j + 1) // w]]))
    expected = []
    for k, slices in enumerate(bins):
        held = [x for _, slice_ in sorted(slices, key=lambda one: one[0]) for x in slice_]
        places = keyed.permute(np.arange(len(held)), len(held), seed, epoch, "bin", k)
        expected += [held[r] for r in places.tolist()]
    order = Sampler(np.array(counts), seed, w)
    assert order.ids(epoch, np.arange(order.n)).tolist() == expected


@pytest.mark.parametrize("window", [1, 2, 5])
def test_no_more_shards_are_open_than_the_window(window):
    counts = np.array([40, 21, 33, 60, 8, 50, 44, 39])
    order = Sampler(counts, 0, window)
    shard = np.searchsorted(np.cumsum(counts), order.ids(0, np.arange(order.n)), "right")
    starts = order.bins(0).starts
    opened = 0
    live: set[int] = set()
    for a, b in pairwise(starts):
        now = set(shard[a:b].tolist())
        assert len(now) <= window
        opened += len(now - live)
        live = now
    assert opened <= len(counts) + window - 1  # those that wrap around are opened twice


def chi2(a: np.ndarray, b: np.ndarray, n: int, bins: int = 64) -> float:
    """Chi-squared per degree of freedom of two series of numbers below n on a grid."""
    table = np.histogram2d(a, b, bins=bins, range=[[0, n], [0, n]])[0]
    expected = len(a) / bins**2
    return float(((table - expected) ** 2 / expected).sum() / (bins**2 - 1))


@pytest.mark.parametrize("n", [50_000, 1_281_167])
def test_the_whole_order_looks_random(n):
    """Position against id, id against the next, lag-1 correlation, one epoch against the next (data.md 9.6)."""
    orders = [Sampler(np.array([n]), 3, None).ids(epoch, np.arange(n)) for epoch in (1, 2)]
    neighbour_seed = Sampler(np.array([n]), 4, None).ids(0, np.arange(n))  # seed + epoch is the same sum
    first = orders[0]
    assert 0.9 < chi2(np.arange(n), first, n) < 1.1
    assert 0.9 < chi2(first[:-1], first[1:], n) < 1.1
    for a, b in ((first[:-1], first[1:]), (first, orders[1]), (first, neighbour_seed)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / n**0.5


@pytest.mark.parametrize("window", [16, 64, 256])
def test_a_batch_draws_from_all_shards_of_the_window(window):
    """Pairs of one shard in batches of 256, against theory: S (n/W - 1) / (n - 1) of what a uniform order has, for
    1,281 shards of 1,000; within a tenth."""
    shards, images, batch = 1281, 1000, 256
    order = Sampler(np.full(shards, images), 0, window)
    which = order.ids(0, np.arange(order.n // batch * batch)) // images
    pairs = 0
    for rows in np.sort(which.reshape(-1, batch), 1):
        runs = np.diff(np.flatnonzero(np.diff(rows, prepend=-1, append=-1)))
        pairs += int((runs * (runs - 1) // 2).sum())
    rate = pairs / (len(which) // batch) / (batch * (batch - 1) / 2)
    uniform = (images - 1) / (order.n - 1)
    theory = shards * (images / window - 1) / (images - 1)
    assert abs(rate / uniform / theory - 1) < 0.1


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 10, pytest.param(63, marks=pytest.mark.slow)])
def test_small_permutations_favour_none(n):
    """Where each element goes, and where the first two go, over 20,000 keys."""
    keys = 20_000
    x = keyed.permute(np.tile(np.arange(n), keys), n, 0, np.repeat(np.arange(keys), n), "t").reshape(keys, n)
    table = np.stack([np.bincount(x[:, i], minlength=n) for i in range(n)])
    assert ((table - keys / n) ** 2 / (keys / n)).sum() / (n - 1) ** 2 < 1 + 5 / n + 0.5
    pairs = np.bincount(x[:, 0] * n + x[:, 1], minlength=n * n).reshape(n, n)[~np.eye(n, dtype=bool)]
    expected = keys / (n * (n - 1))
    degrees = len(pairs) - 1
    assert ((pairs - expected) ** 2 / expected).sum() < degrees + 5 * (2 * degrees) ** 0.5


def test_permutations_of_many_sizes_at_once():
    """An element each of its own permutation: as one by one, and undone."""
    rng = np.random.default_rng(0)
    n = rng.integers(1, 3000, 500)
    x, words = rng.integers(0, n), rng.integers(0, 99, 500)
    there = keyed.permute(x, n, 7, "t", words)
    assert there.tolist() == [
        int(keyed.permute(np.array([a]), int(m), 7, "t", np.int64(w))[0]) for a, m, w in zip(x, n, words, strict=True)
    ]
    assert np.array_equal(keyed.unpermute(there, n, 7, "t", words), x)


@pytest.mark.parametrize("window", [None, 3])
def test_replacements_are_of_shards_in_use(window):
    counts = np.array([40, 21, 33, 60, 8, 50])
    order = Sampler(counts, 0, window)
    for position in range(0, order.n, 17):
        found = [order.replacement(1, position, attempt) for attempt in range(1, 9)]
        assert found == [order.replacement(1, position, attempt) for attempt in range(1, 9)]
        if window:
            starts = order.bins(1).starts
            k = int(np.searchsorted(starts, position, "right")) - 1
            held = set(order.ids(1, np.arange(starts[k], starts[k + 1])).tolist())
            assert set(found) <= held
        assert len(set(found)) > 4
    assert len({order.replacement(0, p, 1) for p in range(50)}) > 20


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_shares_join_to_the_batch(size, accumulate):
    n, batch = 500, 48
    for step in (0, 3, 9, 10, 25):
        plans = [BatchSampler(n, batch, accumulate, rank, size) for rank in range(size)]
        epoch, start = step // (n // batch), step % (n // batch) * batch
        parts = [plan.at(step) for plan in plans]
        assert {p[0] for p in parts} == {epoch}
        joined = np.concatenate([p[1][a] for a in range(accumulate) for p in parts])
        assert joined.tolist() == list(range(start, start + batch))


def test_an_epoch_is_its_whole_batches():
    assert [BatchSampler(n, 6).steps_per_epoch for n in (6, 11, 12, 23, 24)] == [1, 1, 2, 3, 4]
    assert BatchSampler(24, 6).at(3)[0] == 0 and BatchSampler(24, 6).at(4)[0] == 1
    assert BatchSampler(24, 6).at(3)[1][0].tolist() == list(range(18, 24))


def test_what_cannot_be_shared_is_refused():
    with pytest.raises(ConfigError, match="multiple of 10"):
        BatchSampler(100, 48, 2, 0, 5)
    with pytest.raises(ConfigError, match="more than the 30"):
        BatchSampler(30, 48)
