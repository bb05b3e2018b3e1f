"""The likelihood of an RBM: exact where its states can be gone through, and between two estimates where not."""

import pytest
import torch

from pipeline import tags
from pipeline.errors import Stopped
from pipeline.evaluation import likelihood
from pipeline.nets import energies
from pipeline.settings.densities import Likelihood
from pipeline.settings.nets import RBM


@pytest.fixture
def net():
    """A centred machine whose density is far from that of independent units."""
    torch.manual_seed(0)
    made = energies.RBM(RBM(hidden=8), 12, torch.rand(12))
    with torch.no_grad():
        made.weight.normal_()
        made.hidden_offset.uniform_()
    return made


@pytest.fixture
def states():
    return (torch.rand(500, 12, generator=torch.Generator().manual_seed(1)) < 0.4).to(torch.uint8)


def test_parameters_without_offsets_are_the_same_density(net, states):
    machine = net.uncentred()
    energy = net.energy(states.float()) + machine.log_density(states, machine.activations(states))
    assert float(energy.detach().std()) < 1e-5


def test_a_signal_ends_chains_at_their_next_step(net, states):
    """And not before the signal: with 300 temperatures `forward` alone asks 300 times."""
    asked = []

    def halt() -> None:
        asked.append(None)
        if len(asked) == 40:
            raise Stopped("asked to stop")

    with pytest.raises(Stopped):
        likelihood.evaluate(net, states, None, Likelihood(chains=200, temperatures=300, sweeps=50), 0, halt)
    assert len(asked) == 40


def test_exact_and_annealed_agree(net, states, monkeypatch):
    settings = Likelihood(chains=200, temperatures=300, sweeps=50)
    exact = likelihood.evaluate(net, states, None, settings, 0).metrics
    every = torch.cat(list(energies.every_state(12, net.weight)))
    assert exact["log_likelihood"] == pytest.approx(
        float((-net.energy(states.float()).mean() - (-net.energy(every)).logsumexp(0)).detach()), abs=1e-4
    )
    monkeypatch.setattr(likelihood, "BITS", 4)
    found = likelihood.evaluate(net, states, None, settings, 0).metrics
    for name in ("log_likelihood", "log_likelihood_high"):
        assert abs(found[name] - exact["log_likelihood"]) < 4 * found[f"{name}_se"] < 0.4, name
        assert found[f"{name}_ess"] > 50
    assert found["log_likelihood_bound"] < exact["log_likelihood"] + 3 * found["log_likelihood_bound_se"]
    assert found["chain_rhat"] < 1.05 and found["chain_ess"] > 200
    assert all(tags.find(f"density/{name}") for name in found)
