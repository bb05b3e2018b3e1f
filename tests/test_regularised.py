"""Joint embeddings without negatives: the papers' formulas as slow loops in double precision, and their collapses."""

import math
from itertools import combinations, pairwise

import pytest
import torch
from torch import Tensor

from pipeline import keyed
from pipeline.objectives.lejepa import POINT
from pipeline.settings import joint_embeddings as chosen
from pipeline.settings.objectives import Head
from pipeline.settings.training import SGD, Adam
from tests.cases import CASES, batch, make, random
from tests.test_monitor import STEPS, flagged, noted, run
from tests.test_oracles import IDS, agree


def mean(values: list[Tensor]) -> Tensor:
    return sum(values, torch.zeros(()).double()) / len(values)


def test_vicreg_is_algorithm_1(world):
    settings = CASES["vicreg"]

    def covariance(z: Tensor, i: int, j: int) -> Tensor:
        centre = [mean([row[k] for row in z]) for k in (i, j)]
        return sum((row[i] - centre[0]) * (row[j] - centre[1]) for row in z) / (len(z) - 1)

    def variance_loss(z: Tensor) -> Tensor:
        lack = [1 - torch.sqrt(covariance(z, i, i) + 1e-4) for i in range(6)]
        return mean([each if each > 0 else 0 * each for each in lack])

    def covariance_loss(z: Tensor) -> Tensor:
        return sum(covariance(z, i, j) ** 2 for i in range(6) for j in range(6) if i != j) / 6

    def oracle(rows: Tensor) -> Tensor:
        near = mean([(a[i] - b[i]) ** 2 for a, b in rows for i in range(6)])
        views = rows.unbind(1)
        spread, apart = (sum(map(loss, views)) for loss in (variance_loss, covariance_loss))
        return settings.invariance * near + settings.variance * spread + settings.covariance * apart

    agree(make("vicreg", world), batch(make("vicreg", world), IDS), oracle)


def test_barlow_twins_is_eq_1(world):
    objective = make("barlow_twins", world)

    def oracle(rows: Tensor) -> Tensor:
        first, second = (view - torch.stack([mean(list(column)) for column in view.T]) for view in rows.unbind(1))
        total = torch.zeros(()).double()
        for i in range(6):
            for j in range(6):
                up = sum(a[i] * b[j] for a, b in zip(first, second, strict=True))
                down = torch.sqrt(sum(a[i] ** 2 for a in first)) * torch.sqrt(sum(b[j] ** 2 for b in second))
                c = up / down
                total = total + ((1 - c) ** 2 if i == j else CASES["barlow_twins"].redundancy * c**2)
        return total

    b = batch(objective, IDS)
    agree(objective, b, oracle)
    step = objective(b)
    (rows,) = objective.embed(b)
    own = torch.stack([torch.corrcoef(rows[:, :, i].T)[0, 1] for i in range(6)])
    torch.testing.assert_close(step.low.mean(), (1 - own).mean(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["lejepa", "lejepa_crops"])
def test_lejepa_is_algorithm_2(name, world):
    """The integral over all of -bound to bound, with complex exponentials."""
    objective, settings = make(name, world), CASES[name]
    b = batch(objective, IDS, step=3)
    numbers = [keyed.normal(6, b.seed, 3, "sigreg", s) for s in range(settings.slices)]
    directions = [torch.from_numpy(x) / math.sqrt(sum(x**2)) for x in numbers]
    gap = 2 * settings.bound / (settings.points - 1)

    def statistic(z: Tensor, direction: Tensor) -> Tensor:
        heights = []
        for k in range(settings.points):
            t = -settings.bound + k * gap
            phi = mean([torch.exp(1j * t * (row @ direction)) for row in z])
            heights.append((phi - math.exp(-(t**2) / 2)).abs() ** 2 * math.exp(-(t**2) / 2))
        return len(z) * sum(gap * (low + high) / 2 for low, high in pairwise(heights))

    def oracle(whole: Tensor, *crops: Tensor) -> Tensor:
        views = [z for rows in (whole, *crops) for z in rows.unbind(1)]
        assert len(views) == (6 if name == "lejepa_crops" else 2)
        centre = sum(whole.unbind(1)) / whole.shape[1]
        near = mean([((z - centre) ** 2).mean() for z in views])
        normal = mean([mean([statistic(z, a) for a in directions]) for z in views])
        return (1 - settings.weight) * near + settings.weight * normal

    agree(objective, b, oracle)


def test_sigreg_of_normal_numbers_and_of_one_point(world):
    """Of normal ones its mean is the integral of (1 - e^(-t^2)) e^(-t^2 / 2), whatever their number; of a point it
    grows with it."""
    objective = make("lejepa", world)
    b = batch(objective, IDS)
    normal = torch.stack([objective.sigreg(random(64, 2, 6, seed=f"normal {i}"), b) for i in range(40)]).mean()
    assert float(normal) == pytest.approx(math.sqrt(2 * math.pi) * (1 - math.sqrt(1 / 3)), rel=0.15)
    assert float(objective.sigreg(torch.zeros(64, 2, 6).double(), b)) == pytest.approx(64 * POINT, rel=1e-4)


def test_directions_are_others_in_each_step(world):
    objective = make("lejepa", world)
    rows = random(8, 2, 6)
    drawn = [objective.directions(rows, batch(objective, IDS, step)) for step in (3, 3, 4)]
    assert torch.equal(drawn[0], drawn[1])
    assert all(not torch.isclose(a, b).any() for a, b in combinations(drawn[1:], 2))
    torch.testing.assert_close(drawn[0].norm(dim=1), torch.ones(16).double())


HEAD = Head(hidden=64, dim=16, layers=3, norm="hidden")
HEALTHY = {
    "vicreg": chosen.VICReg(head=HEAD),
    "barlow_twins": chosen.BarlowTwins(redundancy=0.1, head=HEAD),
    "lejepa": chosen.LeJEPA(slices=64, head=HEAD),
}
COLLAPSED = {
    "no variance": ("vicreg", {"variance": 0.0}),
    "no covariance": ("vicreg", {"covariance": 0.0}),
    "no redundancy": ("barlow_twins", {"redundancy": 0.0}),
    "no SIGReg": ("lejepa", {"weight": 0.0}),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_volume_without_a_limit_is_a_collapse(name, world):
    healthy = {"collapse/std": 0.3, "collapse/directions": 4.0, "collapse/alignment_ratio": 0.3}
    limited, not_at_all = (healthy | {"collapse/unlimited": share} for share in (0.3, 0.8))
    objective = make(name, world)
    assert noted(objective, [limited] * 60, collapse="stop") == noted(objective, [not_at_all, limited] * 30) == []
    (first, *_) = noted(objective, [limited] * 10 + [not_at_all] * 60, collapse="stop")
    assert "nothing limits the volume of low energy (80% of" in first and "at step 110" in first


@pytest.mark.slow
@pytest.mark.parametrize("case", COLLAPSED)
def test_a_training_without_its_limit_is_flagged(case, digits, tmp_path, world):
    name, weight = COLLAPSED[case]
    flagged(digits, tmp_path / "a", world, HEALTHY[name].model_copy(update=weight), "nothing limits the volume")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_runs_are_left_alone(name, seed, digits, tmp_path, world):
    """By SGD and by Adam. VICReg's loss is larger than the others', and so are its gradients."""
    optimiser = (SGD(lr=0.005, reference_batch=0), Adam(lr=1e-3))[seed]
    rows = run(digits, tmp_path / "a", world, HEALTHY[name], optimiser=optimiser, seed=seed)
    assert rows[-1]["step"] == STEPS
