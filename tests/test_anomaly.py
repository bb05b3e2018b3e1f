"""What energies tell from images: by pairs counted one by one, on energies that are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline import keyed
from pipeline.evaluation import anomaly

IDS = np.arange(20) * 7 + 3


def images() -> torch.Tensor:
    """Strokes on black, [20, 1, 14, 14]."""
    grey = torch.from_numpy(keyed.uniform(20 * 14 * 14, "images")).view(20, 1, 14, 14).float()
    grey[..., 4:10] *= 0.7
    return grey * (grey > 0.6)


def model(energy, binarisation: str = "none"):
    """An objective of these energies of a batch's images [B, C, H, W]."""

    def objective(batch):
        return SimpleNamespace(low=energy(batch.views[0]))

    objective.settings = SimpleNamespace(binarisation=binarisation)
    return objective


def ink(x):
    return x.flatten(1).sum(1)


def test_pairs_are_counted_ties_by_half():
    low, high = torch.tensor([1.0, 2.0, 2.0, 5.0]), torch.tensor([2.0, 0.0, 6.0])
    pairs = [(b > a) + 0.5 * (b == a) for a in low.tolist() for b in high.tolist()]
    assert anomaly.auroc(low, high) == pytest.approx(sum(pairs) / 12)


def test_thinned_is_the_darkest_of_four():
    x = images()
    found = anomaly.thinned(x)
    assert found.shape == x.shape and found.sum() < x.sum()
    for i, r, c in ((0, 5, 6), (3, 13, 13), (7, 1, 9)):
        assert found[i, 0, r, c] == x[i, 0, r - 1 : r + 1, c - 1 : c + 1].min()
    assert torch.equal(found[:, :, 0, 1:], torch.minimum(x[:, :, 0, 1:], x[:, :, 0, :-1]))  # there is nothing above


def test_energies_that_grow_with_ink_miss_what_is_black_and_complexity_finds_it():
    metrics, energies, picture = anomaly.measure(model(ink), images(), IDS, {"twins": images()}, 0)
    assert set(energies) == {"test", *metrics} and metrics["twins"]["auroc"] == pytest.approx(0.5)
    assert metrics["black"]["auroc"] == 0 and metrics["black"]["corrected"] == 1
    assert metrics["white"]["auroc"] == 1 and metrics["black"]["energy"] == 0
    assert [metrics[name]["auroc"] for name in ("shifted", "upside_down")] == pytest.approx([0.5, 0.5], abs=0.02)
    assert metrics["thinned"]["auroc"] < 0.5 < metrics["noise"]["auroc"]
    assert picture.pixels.ndim == 3 and "black 0.000 (1.000)" in picture.caption


def test_complexity_is_of_what_is_modelled():
    """A PNG of one bit a pixel of binary states; of eight of grey images, a file a channel."""
    x = images()
    grey, binary = (anomaly.score(model(ink, how), x, IDS, 0) for how in ("none", "threshold"))
    lengths = grey.energy - grey.corrected, binary.energy - binary.corrected
    assert (lengths[0] > 1.5 * lengths[1]).all() and (lengths[1] > 8 * np.log(2) * 14 * 14 / 8).all()
    assert torch.allclose(anomaly.complexity(x.repeat(1, 5, 1, 1)), 5 * anomaly.complexity(x))


def test_draws_are_those_of_ids():
    first, again, other = (anomaly.simple(images(), ids, 0)["noise"] for ids in (IDS, IDS[::-1].copy(), IDS + 1))
    assert torch.equal(first, again.flip(0)) and not torch.equal(first, other)
