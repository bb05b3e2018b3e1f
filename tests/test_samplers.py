"""Samplers: keyed draws and products, bit for bit; annealed importance sampling against enumeration."""

import numpy as np
import pytest
import torch

from pipeline import keyed
from pipeline.samplers import ais, diagnostics, gibbs


def test_fused_draws_are_the_keyed_ones():
    """From numpy, in the kernel, and in torch's arithmetic, which other devices use."""
    keys = keyed.key(3, "gibbs", 7, np.arange(50))
    numbers = keyed.uniform_of(keys, 31)
    assert (gibbs.uniform(keys, 31, torch.device("cpu")).numpy() == numbers).all()
    probability = torch.rand(50, 31, generator=torch.Generator().manual_seed(0))
    states = gibbs.bernoulli(probability, keys)
    assert states.dtype == torch.uint8
    assert (states.numpy() == (numbers < probability.numpy())).all()
    assert (gibbs.bernoulli(probability[:, 7:], keys, skip=7) == states[:, 7:]).all()
    assert (gibbs.bernoulli(torch.from_numpy(numbers), keys) == 0).all()  # at equality, zero: p = 0 is never one
    assert (gibbs.bernoulli(torch.ones(50, 31), keys) == 1).all()
    assert (gibbs.bernoulli(probability[9:12], keys[9:12]) == states[9:12]).all()


def test_products_of_binary_states():
    draw = torch.Generator().manual_seed(0)
    for share in (0.0, 0.13, 1.0):
        states = (torch.rand(23, 29, generator=draw) < share).to(torch.uint8)
        weight, bias = torch.randn(29, 17, generator=draw).double(), torch.randn(17, generator=draw).double()
        out = gibbs.product(states, weight, bias)
        torch.testing.assert_close(out, bias + states.double() @ weight, rtol=0, atol=1e-13)
        assert (gibbs.product(states[5:6], weight, bias) == out[5:6]).all()


def machine(visible: int, hidden: int, scale: float = 1.0) -> ais.RBM:
    draw = torch.Generator().manual_seed(1)
    weight, b, c = (
        torch.randn(*shape, generator=draw).double() for shape in ((visible, hidden), (visible,), (hidden,))
    )
    return ais.RBM(scale * weight, b - 0.5, c)


def enumerated(rbm: ais.RBM) -> tuple[torch.Tensor, torch.Tensor]:
    """All visible states, and the log of their unnormalised probabilities."""
    count = len(rbm.visible_bias)
    states = (torch.arange(2**count)[:, None] >> torch.arange(count) & 1).to(torch.uint8)
    return states, rbm.log_density(states, rbm.activations(states))


def samples(rbm: ais.RBM, count: int) -> torch.Tensor:
    states, log_density = enumerated(rbm)
    return states[torch.multinomial(log_density.softmax(0), count, True, generator=torch.Generator().manual_seed(2))]


@pytest.mark.parametrize("kept", [False, True])
def test_both_directions_bracket_the_partition_function(kept):
    rbm = machine(14, 10)
    truth = float(enumerated(rbm)[1].logsumexp(0))
    points = [rbm.base(), machine(14, 10, 0.2), machine(14, 10, 0.6), rbm]
    coarse, fine = (
        ais.Path(points, steps) if kept else ais.Path.of_temperatures(rbm, rbm.base(), steps) for steps in (15, 300)
    )
    start = coarse.base_log_partition
    up = ais.log_mean(ais.forward(fine, 400, 0).log_weights)
    down = ais.log_mean(ais.backward(fine, samples(rbm, 400), 0).log_weights)
    assert abs(start + up.value - truth) < 4 * up.error < 0.2 and up.ess > 200
    assert abs(start - down.value - truth) < 4 * down.error < 0.2 and down.ess > 200
    # With few steps the means of the log weights lie on either side, by far.
    assert start + float(ais.forward(coarse, 400, 0).log_weights.mean()) < truth - 0.1
    assert start - float(ais.backward(coarse, samples(rbm, 400), 0).log_weights.mean()) > truth + 0.1


def transition(rbm: ais.RBM) -> torch.Tensor:
    """The probability of each visible state after a sweep from each, [from, to], by enumeration."""
    (states, _), (hidden, _) = enumerated(rbm), enumerated(rbm._replace(visible_bias=rbm.hidden_bias))
    states, hidden = states.double(), hidden.double()

    def probability(logits: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
        return (logits[:, None] * of - torch.nn.functional.softplus(logits)[:, None]).sum(2).exp()

    up = probability(rbm.hidden_bias + states @ rbm.weight, hidden)
    return up @ probability(rbm.visible_bias + hidden @ rbm.weight.T, states)


def test_the_bound_of_the_trajectory_is_below_the_likelihood_of_the_chain():
    """The weights' mean is the chain's probability of each state; the mean of their logs is below it, and nears it
    and the machine's with more steps."""
    rbm = machine(5, 4)
    states, log_density = enumerated(rbm)
    gaps = []
    for steps in (2, 5, 100):
        path = ais.Path([rbm.base(), rbm], steps)
        chain = enumerated(path.at(0))[1].softmax(0)
        for step in range(1, steps + 1):
            chain = chain @ transition(path.at(step))
        log_weights = ais.trajectory(path, states.repeat(3000, 1), 0).log_weights.reshape(3000, -1)
        bound = log_density + log_weights - path.base_log_partition
        torch.testing.assert_close(bound.exp().mean(0), chain, rtol=0.1, atol=0)
        assert (bound.mean(0) < chain.log() + 0.01).all()
        gaps.append(float((log_density.softmax(0) * (log_density.log_softmax(0) - bound.mean(0))).sum()))
    assert gaps[0] > gaps[1] > gaps[2] > 0 and gaps[2] < 0.05


def test_a_sweep_leaves_the_distribution_as_it_is():
    rbm = machine(5, 4)
    states, log_density = enumerated(rbm)
    start = samples(rbm, 200_000)
    ends = rbm.sweep(rbm.activations(start), 0).double() @ 2.0 ** torch.arange(5).double()
    share = torch.bincount(ends.long(), minlength=len(states)) / len(start)
    torch.testing.assert_close(share.double(), log_density.softmax(0), rtol=0, atol=4e-3)
    probability = log_density.softmax(0)
    torch.testing.assert_close(probability @ transition(rbm), probability)


def test_weights_of_one_chain_do_not_depend_on_the_others():
    rbm = machine(14, 10)
    path = ais.Path.of_temperatures(rbm, rbm.base(), 20)
    assert (ais.forward(path, 8, 0).log_weights[:5] - ais.forward(path, 5, 0).log_weights).abs().max() < 1e-12


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_chains_are_judged_as_theory_says(phi):
    """Of an autoregression x' = phi x + noise, n draws are worth n (1 - phi) / (1 + phi)."""
    noise = torch.randn(2000, 20, generator=torch.Generator().manual_seed(0)).double()
    values = [noise[0] / (1 - phi**2) ** 0.5]
    for row in noise[1:]:
        values.append(phi * values[-1] + row)
    chains = torch.stack(values)
    assert diagnostics.effective_size(chains) == pytest.approx(40_000 * (1 - phi) / (1 + phi), rel=0.1)
    assert diagnostics.rhat(chains) < 1.02
    assert diagnostics.rhat(chains.exp()) == pytest.approx(diagnostics.rhat(chains), abs=5e-3)  # ranks
    assert diagnostics.rhat(chains + torch.linspace(0, 5, 20)) > 1.1
    assert diagnostics.rhat(chains * torch.linspace(0.2, 2, 20)) > 1.1
    assert diagnostics.rhat(chains + torch.linspace(0, 6, 2000)[:, None]) > 1.1


def test_diagnostics_are_those_of_arviz():
    """Values of arviz-stats 0.8 (methods rank and bulk). Its size adds half of one more autocorrelation."""
    chains = torch.from_numpy(keyed.normal(6, 0, "chains", np.arange(101))).cumsum(0)
    assert diagnostics.rhat(chains) == pytest.approx(2.2964794557416504, rel=1e-9)
    assert diagnostics.effective_size(chains) == pytest.approx(8.10, rel=0.1)
