"""The Frechet distance where it is known in closed form, and from samples that are images."""

import pytest
import torch

from pipeline import keyed
from pipeline.evaluation import frechet


def normal(count: int, dim: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(keyed.normal(count * dim, seed).copy()).view(count, dim)


def test_it_is_that_of_two_gaussians():
    """|| m1 - m2 ||^2 + sum of (s1 - s2)^2 along common axes, here turned; whitened draws have exact moments."""
    draws = normal(50, 4, 0)
    draws = (draws - draws.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(draws.T))).T
    turn, _ = torch.linalg.qr(normal(4, 4, 1))
    first, second = torch.tensor([1.0, 2.0, 0.5, 0.0]).double(), torch.tensor([1.0, 0.5, 0.0, 3.0]).double()
    shift = torch.tensor([0.0, 1.0, -2.0, 0.5]).double()
    found = frechet.distance(draws * first @ turn, (draws * second + shift) @ turn)
    assert found == pytest.approx(float(shift.square().sum() + (first - second).square().sum()), rel=1e-6)
    assert frechet.distance(draws @ turn, draws @ turn) == pytest.approx(0, abs=1e-6)


def test_samples_are_measured_beside_training_images():
    images = torch.from_numpy(keyed.uniform(120 * 64, "images")).view(3, 40, 1, 8, 8).float()
    found = frechet.measure(images[0] ** 4, images[1], images[2], frechet.Cells(), "cells")
    assert found["frechet"] > 2 * found["frechet_floor"] > 0
    assert found["frechet_protocol"] == "40 samples against as many test images, features of cells (49)"
