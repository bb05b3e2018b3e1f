"""Every objective of densities on machines small enough to be known exactly: 10 spins, and an RBM of 14 and 10 units.

At the truth the gradient over the whole population is zero; from 2,000 samples each comes nearly as close to it as
maximum likelihood does.
"""

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline import jit, keyed, objectives
from pipeline.data.shards import Shards
from pipeline.errors import ConfigError
from pipeline.image import Image
from pipeline.nets import energies
from pipeline.nets import flips as kernels
from pipeline.objectives.base import Batch, Setup
from pipeline.objectives.densities import Chains, binarise
from pipeline.objectives.memory import Particles
from pipeline.objectives.neighbours import Neighbours
from pipeline.objectives.noise import NCE, ConditionalNCE
from pipeline.settings import densities as kinds
from pipeline.settings import nets
from pipeline.settings.stages import Pretrain
from pipeline.stages import pretrain
from pipeline.world import World
from tests.artifacts import whole_and_resumed

SETTINGS = {
    "maximum_likelihood": kinds.MaximumLikelihood(),
    "cd": kinds.CD(),
    "pcd": kinds.PCD(particles=2000),
    "pseudo_likelihood": kinds.PseudoLikelihood(),
    "ratio_matching": kinds.RatioMatching(),
    "mpf": kinds.MPF(),
    "nce": kinds.NCE(),
    "conditional_nce": kinds.ConditionalNCE(noise=5, flips=0.2),
}
NETS: dict[str, tuple[int, nets.Net]] = {"boltzmann": (10, nets.Boltzmann()), "rbm": (14, nets.RBM(hidden=10))}
EVERY = pytest.mark.parametrize("objective", SETTINGS)
BOTH = pytest.mark.parametrize("machine", NETS)
SAMPLES, STEPS = 2000, 600


class Machine(NamedTuple):
    """Pixels, settings, the true net, all states [2^D, D] and the log-probability of each."""

    pixels: int
    net: nets.Net
    true: energies.EnergyNet
    states: Tensor
    log_p: Tensor

    def build(self, settings: kinds.Density, means: Tensor | None = None) -> Any:
        """An objective for images of one row of pixels, its net at the truth."""
        image = Image(self.pixels, 1, (0.5,) * self.pixels, (0.5,) * self.pixels)
        setup = Setup(image, SAMPLES, self.net, World.single(device="cpu"), 0, pixel_means=means)
        return objectives.build(settings, setup).double()


def log_probabilities(net, states: Tensor) -> Tensor:
    with torch.no_grad():
        return (-net.energy(states)).log_softmax(0)


def machine(name: str) -> Machine:
    pixels, net = NETS[name]
    blank = Machine(pixels, net, None, None, None)  # type: ignore[arg-type]
    true = blank.build(kinds.PseudoLikelihood()).net
    with torch.no_grad():
        for key, p in true.named_parameters():
            scale = 1.1 if name == "boltzmann" and key == "weight" else 0.7  # the symmetric part has 0.8
            p.copy_(scale * torch.from_numpy(keyed.normal(p.numel(), name, key)).view_as(p))
    states = torch.cat(list(energies.every_state(pixels, true.weight)))
    return Machine(pixels, net, true, states, log_probabilities(true, states))


@pytest.fixture(scope="module")
def machines():
    return {name: machine(name) for name in NETS}


def divergence(m: Machine, net) -> float:
    """KL(p || q) in nats."""
    return float((m.log_p.exp() * (m.log_p - log_probabilities(net, m.states))).sum())


# ------------------------------------------------------------------------------------------------------ the population
@torch.no_grad()
def transition(m: Machine, net, p: Tensor) -> Tensor:
    """Probabilities [2^D] after one Gibbs sweep from states with probabilities p [2^D], by the net's conditionals."""
    if isinstance(net, energies.RBM):
        hidden = torch.cat(list(energies.every_state(net.features, net.weight)))
        of_hidden = product(net.hidden(m.states), hidden).T @ p
        return product(net.field(hidden).sigmoid(), m.states).T @ of_hidden
    numbers = torch.arange(len(p))
    for i in range(m.pixels):
        one = torch.sigmoid(net.field(m.states)[:, i])
        both = p + p[numbers ^ (1 << i)]
        p = both * torch.where(m.states[:, i] == 1, one, 1 - one)
    return p


def product(chances: Tensor, states: Tensor) -> Tensor:
    """Probabilities of binary states [n, U] of independent units with chances [B, U] -> [B, n]."""
    return (chances.log() @ states.T + torch.log1p(-chances) @ (1 - states).T).exp()


def population_loss(m: Machine, o) -> Tensor:
    """The objective's loss in expectation over data and over what it draws; for chains, over where they lead."""
    p, low = m.log_p.exp(), o.energy(m.states)
    if isinstance(o, Chains):
        return (p - transition(m, o.net, p)) @ low
    if isinstance(o, Neighbours):
        return p @ o.losses(low, low[:, None] + o.net.flips(m.states))
    if isinstance(o, NCE):
        q, away = o.proposal.log_density(m.states, None), torch.tensor(torch.inf)
        of_data = o.losses(low, away.expand(len(low), 1), q, q[:, None])
        of_noise = o.losses(-away.expand(len(low)), low[:, None], q, q[:, None])
        return p @ of_data + o.settings.noise * q.exp() @ of_noise
    if isinstance(o, ConditionalNCE):
        return torch.stack([flip_share(m, o, low, p, turned) for turned in range(1, len(p), len(p) // 50)]).sum()
    return p @ low + o.net.log_partition()


def flip_share(m: Machine, o, low: Tensor, p: Tensor, turned: int) -> Tensor:
    """The part of conditional NCE's loss in which the pixels that are ones of the number ``turned`` are flipped: its
    gradient is zero at the truth for each by itself."""
    numbers, count = torch.arange(len(p)), turned.bit_count()
    chance = o.settings.flips**count * (1 - o.settings.flips) ** (m.pixels - count)
    return chance * p @ o.losses(low, low[numbers ^ turned][:, None])


@BOTH
@pytest.mark.parametrize("objective", [name for name in SETTINGS if name != "pcd"])  # whose chains are those of cd
def test_the_gradient_is_zero_at_the_truth(objective, machine, machines):
    """Where it is not, the objective is not consistent. Scaled by the gradient at other parameters."""
    m = machines[machine]
    o = m.build(SETTINGS[objective], torch.linspace(0.2, 0.8, m.pixels, dtype=torch.float64))
    o.net.load_state_dict(m.true.state_dict())
    if isinstance(o, NCE):
        with torch.no_grad():
            o.log_partition.copy_(m.true.log_partition())
    size = []
    for factor in (1.0, 0.5):
        with torch.no_grad():
            o.net.weight.mul_(factor)
        parameters = list(o.parameters())
        gradients = torch.autograd.grad(population_loss(m, o), parameters)
        size.append(max(float(g.abs().max()) for g in gradients))
    assert size[0] < 1e-8 and size[1] > 1e-3


@BOTH
def test_a_sweep_leads_where_its_conditionals_say(machine, machines):
    """Frequencies of 20,000 sweeps from one state, by Pearson's chi-square over the likeliest states: 3.5 sigma."""
    m, count = machines[machine], 20_000
    start = int(m.log_p.argmax())
    p = transition(m, m.true, torch.nn.functional.one_hot(torch.tensor(start), len(m.log_p)).double())
    states = m.states[start].repeat(count, 1)
    ends = m.true.gibbs(states, keyed.key(0, np.arange(count), "sweep"))  # type: ignore[operator]
    numbers = (ends.long() << torch.arange(m.pixels)).sum(1)
    found, wanted = torch.bincount(numbers, minlength=len(p)), count * p
    often = wanted > 5
    squares = ((found - wanted)[often].square() / wanted[often]).sum()
    assert often.sum() > 20 and abs(squares - often.sum()) < 3.5 * (2 * often.sum()) ** 0.5


# ------------------------------------------------------------------------------------------------------- 2,000 samples
def samples(m: Machine) -> Tensor:
    """SAMPLES states of the truth, [SAMPLES, D]."""
    numbers = torch.searchsorted(m.log_p.exp().cumsum(0), torch.from_numpy(keyed.uniform(SAMPLES, "samples")))
    return m.states[numbers.clamp(max=len(m.states) - 1)]


def fit(m: Machine, o, views: Tensor) -> float:
    """Trains on all samples at once -> the divergence. By L-BFGS, where the noise stays as it is drawn; chains by SGD,
    with the parameters' mean over the second half."""
    given = Batch((views,), torch.arange(SAMPLES), dtype=torch.float64)
    if not isinstance(o, Chains):
        optimiser = torch.optim.LBFGS(o.parameters(), max_iter=100, line_search_fn="strong_wolfe")
        optimiser.step(lambda: stepped(o, given, optimiser))
        return divergence(m, o.net)
    optimiser, means = torch.optim.SGD(o.parameters(), 1.0), [torch.zeros_like(p) for p in o.parameters()]
    for step in range(STEPS):
        stepped(o, replace(given, step=step, epoch=step), optimiser)
        optimiser.step()
        for mean, p in zip(means, o.parameters(), strict=True):
            mean += p.detach() * (step >= STEPS // 2) / (STEPS // 2)
    with torch.no_grad():
        for mean, p in zip(means, o.parameters(), strict=True):
            p.copy_(mean)
    return divergence(m, o.net)


def stepped(o, batch: Batch, optimiser) -> Tensor:
    """The loss, after its backward pass and commit."""
    optimiser.zero_grad()
    result = o(batch)
    result.loss.backward()
    if isinstance(o, Chains):
        o.commit(result.pending, batch.step)
    return result.loss


@pytest.fixture(scope="module")
def divergences(machines):
    """KL(p || q) in nats of what each objective makes of the same samples."""
    found = {}
    for name, m in machines.items():
        data = samples(m)
        for key, settings in SETTINGS.items():
            o = m.build(settings, data.mean(0))
            with torch.no_grad():
                o.net.weight.mul_(30)  # a start from which L-BFGS sees the hidden units apart
            found[key, name] = fit(m, o, data.view(-1, m.pixels, 1, 1))
    return found


@pytest.mark.slow
@BOTH
@EVERY
def test_from_2000_samples_it_comes_nearly_as_close_as_maximum_likelihood(objective, machine, divergences):
    assert divergences[objective, machine] < 2.5 * divergences["maximum_likelihood", machine] < 0.3


# ------------------------------------------------------------------------------------------------------------ the nets
def small(kind: nets.Net, means: Tensor | None = None):
    """An energy net in float64 with weights that matter, for images of 2 x 3 x 3."""
    net = energies.build(kind, Image(2, 3, (0.5,) * 2, (0.5,) * 2), 3, means).double()
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(torch.from_numpy(keyed.normal(p.numel(), "small", name)).view_as(p))
    return net


SMALL = {
    "boltzmann": nets.Boltzmann(),
    "rbm": nets.RBM(hidden=5),
    "plain_rbm": nets.RBM(hidden=5, centred=False),
    "energy": nets.Energy(trunk=nets.MLP(width=6, activation="silu")),
}


@pytest.mark.parametrize("scale", [1.0, 9.0, 60.0])  # of weights: two products, a product for each, none
@pytest.mark.parametrize("chunk", [None, 7, 1 << 18])
@pytest.mark.parametrize("kind", SMALL)
def test_flips_are_differences_of_energies(kind, chunk, scale, monkeypatch):
    """And so are their gradients: by kernels (no chunk), or by so many numbers at a time."""
    if chunk is not None:
        monkeypatch.setattr(jit, "AVAILABLE", False)
    monkeypatch.setattr(kernels, "CACHED", chunk or 1)
    monkeypatch.setattr(energies, "CHUNK", chunk or 1)
    net = small(SMALL[kind])
    with torch.no_grad():
        next(net.parameters()).mul_(scale)
    x = torch.from_numpy(keyed.uniform(4 * 18, "x")).view(4, 18).round()
    weights = torch.from_numpy(keyed.normal(4 * 18, "w")).view(4, 18)
    turned = torch.stack([x.clone() for _ in range(18)])
    for i in range(18):
        turned[i, :, i] = 1 - turned[i, :, i]
    plain = torch.stack([net.energy(t) for t in turned], 1) - net.energy(x)[:, None]
    flips = net.flips(x)
    torch.testing.assert_close(flips, plain, rtol=1e-12, atol=1e-8)  # torch's softplus is x past 20
    gradients = [torch.autograd.grad((weights * y).sum(), net.parameters(), allow_unused=True) for y in (flips, plain)]
    assert sum(g is not None for g in gradients[0]) >= 2
    for one, other in zip(*gradients, strict=True):  # a bias of the head cancels
        torch.testing.assert_close(torch.zeros(()).double() if one is None else one, other, rtol=1e-9, atol=1e-8)


def test_the_partition_function_is_the_same_from_both_sides():
    net = small(nets.RBM(hidden=5))
    assert net.bits == 5 and len(net.every_energy()) == 32
    both = torch.cat([net.energy(states) for states in energies.every_state(18, net.weight)])
    torch.testing.assert_close(net.log_partition(), both.neg().logsumexp(0), rtol=1e-12, atol=0)


def test_free_energies_are_sums_over_hidden_states():
    """E(v, h) as it is written in the paper."""
    net = small(nets.RBM(hidden=5), torch.linspace(0.1, 0.9, 18))
    (h,), v = energies.every_state(5, net.weight), torch.from_numpy(keyed.uniform(3 * 18, "v")).view(3, 18).round()
    with torch.no_grad():
        b, c, w = net.visible_bias, net.hidden_bias, net.weight
        v0, h0 = v - net.visible_offset, h - net.hidden_offset
        joint = -(v0 @ b)[:, None] - h0 @ c - v0 @ w @ h0.T
        torch.testing.assert_close(net.energy(v), -joint.neg().logsumexp(1), rtol=1e-12, atol=0)


def test_moving_the_offsets_changes_no_probability():
    net = small(nets.RBM(hidden=5, offset_rate=0.5), torch.linspace(0.1, 0.9, 18))
    v = torch.from_numpy(keyed.uniform(7 * 18, "v")).view(7, 18).round()
    with torch.no_grad():
        before = (-net.energy(v) - net.log_partition(), net.hidden(v), net.field(net.hidden(v)))
        net.recentre(torch.linspace(0, 1, 5).double())
        after = (-net.energy(v) - net.log_partition(), net.hidden(v), net.field(net.hidden(v)))
    assert (net.hidden_offset - 0.5).abs().max() > 0.2
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_centred_machine_learns_the_negative_as_it_learns_the_picture():
    """Melchior, Fischer & Wiskott 2016, sec. 3: exchange of 0 and 1 in the pixels changes nothing else."""
    data = torch.from_numpy(keyed.uniform(50 * 18, "data")).view(50, 18).pow(2).round()
    image, found = Image(2, 3, (0.5,) * 2, (0.5,) * 2), []
    for states in (data, 1 - data):
        setup = Setup(image, 50, nets.RBM(hidden=5), World.single(device="cpu"), 0, pixel_means=states.mean(0))
        o: Any = objectives.build(kinds.MaximumLikelihood(), setup).double()
        with torch.no_grad():
            o.net.weight.mul_(100 * (1 if states is data else -1))
        optimiser = torch.optim.SGD(o.parameters(), 0.5)
        for step in range(20):
            result = o(Batch((states.view(50, 2, 3, 3),), torch.arange(50), step, dtype=torch.float64))
            optimiser.zero_grad()
            result.loss.backward()
            optimiser.step()
            o.commit(result.pending, step)
        found.append(float(result.loss.detach()))
    assert found[0] == pytest.approx(found[1], rel=1e-6)  # the first biases are in fp32


def test_half_precision_is_of_products_alone():
    """Of 18 pixels bf16 leaves a hundredth of the weights' gradient, and less of what is summed."""
    net, x = small(nets.RBM(hidden=5)), torch.from_numpy(keyed.uniform(40 * 18, "x")).view(40, 18).round()
    keys = keyed.key(0, np.arange(40), "sweep")
    found = []
    for half in (False, True):
        energies, hidden = net.energy_and_hidden(x, half)
        gradients = torch.autograd.grad(energies.sum(), net.parameters())
        found.append((energies.detach(), hidden, net.gibbs(x, keys, half).mean(), *gradients))
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype == torch.float64
        assert (one - other).abs().max() < 0.02 * one.abs().max()
    assert not torch.equal(found[0][0], found[1][0])


def test_too_many_states_are_refused(machines):
    image = Image(1, 8, (0.5,), (0.5,))
    with pytest.raises(ConfigError, match=r"all states of 23 units; expected at most 22: fewer net\.hidden"):
        objectives.build(
            kinds.MaximumLikelihood(), Setup(image, 1, nets.RBM(hidden=23), World.single(device="cpu"), 0)
        )


# ------------------------------------------------------------------------------------------------ pixels and particles
def test_pixels_are_drawn_by_seed_epoch_and_sample():
    grey = torch.full((2000, 1, 4, 4), 0.3, dtype=torch.float64)
    grey[:, :, 0] = 0.0
    batches = [Batch((grey,), torch.arange(2000), epoch=epoch, dtype=torch.float64) for epoch in (0, 1, 2)]
    hows = ("dynamic", "static", "threshold")
    dynamic, static, threshold = ([binarise(b, how) for b in batches] for how in hows)
    for states in (*dynamic, *static):
        assert set(states.unique().tolist()) == {0.0, 1.0} and not states[:, :4].any()
        assert states[:, 4:].mean() == pytest.approx(0.3, abs=0.01)
    assert not torch.equal(dynamic[1], dynamic[2]) and torch.equal(static[1], static[2])
    assert not threshold[0].any()
    some = Batch((grey[:3],), torch.tensor([5, 900, 7]), epoch=1, dtype=torch.float64)
    assert torch.equal(binarise(some, "dynamic"), dynamic[1][[5, 900, 7]])


def ranks(size: int) -> list[Any]:
    return [SimpleNamespace(rank=rank, size=size) for rank in range(size)]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("pieces", [1, 2])
def test_every_particle_keeps_its_lineage(size, pieces):
    """What is written back stands where it was read, so that after 50 steps all of the ancestors are there. Buffers
    that are written in another order than they are read lose half of them in an epoch."""
    parts = [Particles(24, 5, 0, world) for world in ranks(size)]
    for step in range(50):
        for particles in parts:
            read = [particles.part((i, pieces)) for i in range(pieces)]
            numbers = np.concatenate([numbers for numbers, _ in read])
            marks = (torch.from_numpy(numbers)[:, None] >> torch.arange(5) & 1).to(torch.uint8)
            if step:
                assert torch.equal(torch.cat([states for _, states in read]), marks)
            particles.write(marks)
    assert sorted(n for particles in parts for n in particles.numbers.tolist()) == list(range(24))


def test_particles_are_the_same_on_any_number_of_ranks():
    whole = Particles(24, 5, 7).states
    for size in (2, 3):
        for world in ranks(size):
            particles = Particles(24, 5, 0, world)
            particles.load_state_dict({"states": whole})  # as a checkpoint of another number of ranks has them
            assert torch.equal(particles.states, whole[world.rank :: size])
            assert torch.equal(Particles(24, 5, 7, world).states, particles.states)


def test_a_share_of_the_particles_starts_anew():
    particles = Particles(4000, 9, 0, None, torch.full((9,), 0.9))
    assert particles.states.double().mean() == pytest.approx(0.9, abs=0.01)
    numbers, states = particles.part((0, 1))
    blank = torch.zeros_like(states)
    assert not particles.renewed(blank, numbers, 0.0, 0, 3).any()
    renewed = particles.renewed(blank, numbers, 0.05, 0, 3).any(1)
    assert renewed.double().mean() == pytest.approx(0.05, abs=0.015)
    assert not torch.equal(renewed, particles.renewed(blank, numbers, 0.05, 0, 4).any(1))


# ----------------------------------------------------------------------------------------------------------- the stage
@pytest.mark.parametrize("kind", ["pcd", "nce"])
def test_a_training_goes_on_to_the_same_bits(kind, digits, tmp_path, world):
    """From a checkpoint in its middle, particles and all; the model that it writes is read back whole."""
    given = {"kind": "pretrain", "data": "shards", "objective": {"kind": kind}, "net": {"kind": "rbm", "hidden": 20}}
    chosen = Pretrain(**given, steps=12, batch=100, save_steps=6, keep=2, log_steps=3, snapshots=1)
    first, second = whole_and_resumed(chosen, 6, digits, tmp_path, world)
    assert first == second
    loaded: Any = objectives.load(tmp_path / "one")
    assert loaded.settings.binarisation == "dynamic" and loaded.encoder(torch.rand(3, 1, 8, 8)).shape == (3, 20)
    if kind == "pcd":
        assert loaded.particles.states.shape == (500, 64) and 0 < loaded.particles.states.double().mean() < 1
    means = pretrain.pixel_means(Shards.open(digits), 8, 1438)
    assert means is not None
    torch.testing.assert_close(loaded.net.visible_offset, means.flatten())


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"objective": {"kind": "pcd"}, "net": {"kind": "cnn"}}, "a cnn gives a trunk's features, which"),
        ({"objective": {"kind": "moco"}, "net": {"kind": "rbm"}}, "a rbm gives the energy of an image, which"),
        ({"objective": {"kind": "cd"}, "net": {"kind": "energy"}}, "objective cd needs Gibbs sweeps; expected an rbm"),
        (
            {"objective": {"kind": "pcd", "particles": 9}, "place": {"on": "workers", "workers": 2}},
            "objective.particles: 9 does not divide over 2 workers; expected a multiple of 2",
        ),
        (
            {"objective": {"kind": "mpf"}, "net": {"kind": "energy", "trunk": {"norm": {"kind": "global"}}}},
            "trunk.norm.kind: global: an energy is of its image alone; expected none",
        ),
    ],
)
def test_what_does_not_go_together_is_said(settings, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        Pretrain.model_validate({"kind": "pretrain", "data": "shards"} | settings)


def test_what_has_run_away_is_seen(machines):
    """Chains far above the data, energies out of all proportion, and noise that everyone could tell."""
    m = machines["rbm"]
    chains, noise = m.build(kinds.PCD()), m.build(kinds.NCE())
    healthy = {"energy/gap": 3.0, "energy/low": -40.0, "density/accuracy": 0.8}
    assert chains.collapse_signs(healthy) == {} and noise.collapse_signs(healthy) == {}
    ill = {"energy/gap": -20.0, "energy/low": 2000.0, "density/accuracy": 0.97}
    assert set(chains.collapse_signs(ill)) == {"chains", "magnitude"}
    assert set(noise.collapse_signs(ill)) == {"easy", "magnitude"}
