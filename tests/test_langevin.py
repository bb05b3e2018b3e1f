"""Langevin and Hamiltonian chains against densities whose moments are known."""

from itertools import islice

import numpy as np
import pytest
import torch

from pipeline import keyed
from pipeline.samplers import diagnostics, langevin
from pipeline.samplers.langevin import Target


def gaussian(x: torch.Tensor) -> torch.Tensor:
    return x.square().flatten(1).sum(1) / 2


def valley(x: torch.Tensor) -> torch.Tensor:
    """Two wells joined by a bent valley, in the plane."""
    a, b = x.unbind(1)
    return 2 * (a.square() - 1).square() + 2 * (b - a.square() / 2).square() + a / 3


def moments(x: torch.Tensor) -> torch.Tensor:
    """Points [..., 2] -> their coordinates, squares and product, [..., 5]."""
    a, b = x.unbind(-1)
    return torch.stack([a, b, a * a, b * b, a * b], -1)


def quadrature(target: Target) -> torch.Tensor:
    low, high = target.bounds or (-6.0, 6.0)
    line = torch.linspace(low, high, 1001, dtype=torch.float64)
    line = (line[1:] + line[:-1]) / 2
    points = torch.cartesian_prod(line, line)
    return (-target.energy(points) / target.temperature).softmax(0) @ moments(points)


def keys(count: int, seed: int = 0) -> np.ndarray:
    return keyed.key(seed, "chain", np.arange(count))


def start(count: int, dim: int = 2) -> torch.Tensor:
    return torch.from_numpy(keyed.uniform(dim, "start", np.arange(count)))


@pytest.mark.parametrize("step, temperature", [(0.1, 1.0), (0.5, 1.0), (0.5, 0.25)])
def test_langevin_has_the_variance_of_its_step_and_temperature(step, temperature):
    ends = langevin.langevin(Target(gaussian, temperature), start(4000, 16), keys(4000), step, round(8 / step))
    assert float(ends.var()) == pytest.approx(temperature / (1 - step / 2), rel=0.02)


def test_the_temperature_of_a_short_run_is_that_of_its_samples():
    """Noise that does not follow from the step: x <- x - a dE/dx + s N(0, 1) has variance s^2 / (2 a - a^2) on N(0,
    1), which is that of a Langevin step at the temperature that is said."""
    assert langevin.effective_temperature(10, 0.005) == pytest.approx(1.25e-6)
    step, noise = 0.1, 0.1
    temperature = langevin.effective_temperature(step, noise)
    ends = langevin.langevin(Target(gaussian, temperature), start(4000, 16), keys(4000), step, 80)
    assert float(ends.var()) == pytest.approx(noise**2 / (2 * step - step**2), rel=0.02)


BOX = Target(valley, bounds=(0.0, 1.0))
SAMPLERS = {
    "mala": lambda target, x, keys: langevin.mala(target, x, keys, 0.1, 100),
    "hmc": lambda target, x, keys: langevin.hmc(target, x, keys, 0.3, 5, 60),
}


@pytest.mark.parametrize("target", [Target(valley), Target(valley, 2.0), BOX], ids=["plane", "hot", "box"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_accepted_chains_keep_the_density(sampler, target):
    """Whose moments are within four errors of the quadrature's, the errors from the effective sample size; the spread
    of independent chains says the same of them."""
    tuned, length = (100, 300) if sampler == "mala" else (60, 80)
    states = islice(SAMPLERS[sampler](target, start(500), keys(500)), tuned, tuned + length)
    means, acceptance = zip(*[(moments(s.point.x), s.acceptance) for s in states], strict=True)
    values = torch.stack(means)
    sizes = torch.tensor([diagnostics.effective_size(v) for v in values.unbind(2)])
    error = values.flatten(0, 1).std(0) / sizes.sqrt()
    assert ((values.mean((0, 1)) - quadrature(target)).abs() < 4 * error).all()
    torch.testing.assert_close(error, values.mean(0).std(0) / len(keys(500)) ** 0.5, rtol=0.3, atol=0)
    goal = langevin.MALA if sampler == "mala" else langevin.HMC
    assert float(torch.stack(acceptance).mean()) == pytest.approx(goal, abs=0.06)
    if target.bounds:
        assert all(float(m[:, :2].min()) >= 0 and float(m[:, :2].max()) <= 1 for m in means)


def test_in_logits_the_density_is_the_same():
    target = BOX.in_logits()
    states = islice(langevin.hmc(target, start(500).logit(), keys(500), 1.0, 3, 60), 60, 140)
    values = torch.stack([moments(s.point.x.sigmoid()) for s in states]).mean(0)
    error = values.std(0) / len(values) ** 0.5
    assert ((values.mean(0) - quadrature(BOX)).abs() < 4 * error).all()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_chain_depends_on_no_other(sampler):
    def end(rows: slice) -> torch.Tensor:
        *_, last = islice(SAMPLERS[sampler](BOX, start(9)[rows], keys(9)[rows]), 30)
        return last.point.x

    assert torch.equal(end(slice(9))[3:5], end(slice(3, 5)))
    walk = langevin.langevin(BOX, start(9), keys(9), 0.1, 30)
    assert torch.equal(walk[3:5], langevin.langevin(BOX, start(9)[3:5], keys(9)[3:5], 0.1, 30))


def test_what_is_not_finite_is_refused():
    """Energies without a number beyond a circle: chains stay inside it, and are uniform there."""

    def circle(x):
        return torch.where(x.square().sum(1) < 1, 0 * x.sum(1), torch.nan)

    states = list(islice(langevin.mala(Target(circle), start(500) / 2, keys(500), 0.05), 200))[40:]
    radii = torch.stack([s.point.x.square().sum(1) for s in states])
    assert float(radii.max()) < 1
    assert float(radii.mean()) == pytest.approx(0.5, abs=0.02)


def test_the_parameters_of_an_energy_get_no_gradient():
    layer = torch.nn.Linear(2, 1).double()
    langevin.langevin(Target(lambda x: layer(x)[:, 0]), start(3), keys(3), 0.1, 2)
    assert layer.weight.grad is None


def test_numbers_of_a_device_are_the_keyed_ones():
    """What a GPU computes for itself, here in its arithmetic on a CPU, is that of numpy but for rounding."""
    like = torch.empty(5, 3, 7, dtype=torch.float64)
    expected = keyed.normal(21, 0, "chain", np.arange(5)).reshape(5, 3, 7)
    assert (langevin.normal(keys(5), like).numpy() == expected).all()
    torch.testing.assert_close(langevin.on_device(keys(5), like), torch.from_numpy(expected), rtol=0, atol=1e-12)
