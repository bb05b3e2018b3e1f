"""The partition function of a restricted Boltzmann machine by annealed importance sampling, from both sides.

A path leads from independent units, whose partition function is known, to the machine (Neal 2001; Salakhutdinov &
Murray 2008). A chain that follows it collects a log weight; E exp(weight) is the ratio of the partition functions:

- forward, from exact samples of the base: an estimate of log Z too low in the mean, so a likelihood too high;
- backward, from samples of the machine: too high, so a likelihood too low, if those are samples of the machine;
- backward, from test images after one sweep: the mean weight bounds from below the log-likelihood of the chain
  itself, the normalised model that draws from the base and follows the path (RAISE: Burda, Grosse & Salakhutdinov,
  arXiv 1412.8566). That holds whatever the chains did; of the machine it is an estimate, rarely too high.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from pipeline import keyed
from pipeline.samplers import gibbs

TEMPERATURES = (0.5, 0.7, 0.9, 0.95)
"""Where a path of temperatures bends: each of its five parts has as many steps, so they lie densest near 1."""


class RBM(NamedTuple):
    """p(v, h) proportional to exp(v'W h + b'v + c'h): weight W [D, H], visible bias b [D], hidden bias c [H]."""

    weight: Tensor
    visible_bias: Tensor
    hidden_bias: Tensor

    def activations(self, states: Tensor) -> Tensor:
        """Log-odds of the hidden units for visible states, uint8 [N, D] -> [N, H]."""
        return gibbs.product(states, self.weight, self.hidden_bias)

    def log_density(self, states: Tensor, activations: Tensor) -> Tensor:
        """log p(v) + log Z of visible states with these activations -> float64 [N]."""
        linear = states.to(self.visible_bias.dtype) @ self.visible_bias
        return linear.double() + softplus(activations).sum(1, dtype=torch.float64)

    def sweep(self, activations: Tensor, *key) -> Tensor:
        """Visible states after those whose activations are given, by way of hidden ones: uint8 [N, D]. Leaves p(v) as
        it is, and is reversible."""
        keys = keyed.key(*key, np.arange(len(activations)))
        hidden = gibbs.bernoulli(activations.sigmoid(), keys)
        logits = torch.addmm(self.visible_bias, hidden.to(self.weight.dtype), self.weight.T)
        return gibbs.bernoulli(logits.sigmoid(), keys, skip=hidden.shape[1])

    def base(self) -> "RBM":
        """The machine without weights: independent units."""
        return RBM(torch.zeros_like(self.weight), self.visible_bias, torch.zeros_like(self.hidden_bias))


def between(first: RBM, second: RBM, share: float) -> RBM:
    """The machine whose parameters lie at a share of the way from one to another."""
    return RBM(*(torch.lerp(a, b, share) for a, b in zip(first, second, strict=True)))


class Path:
    """``steps`` + 1 machines on the way along ``points``, from independent units (the first, without weights) to the
    machine of interest (the last): as many steps between each two. ``halt`` is called at each step; an error that it
    raises ends the chains."""

    def __init__(self, points: Sequence[RBM], steps: int, halt: Callable[[], None] = lambda: None):
        if points[0].weight.any() or len(points) < 2 or steps < 1:
            raise ValueError("a path leads in one step or more from a machine without weights to another")
        self.points, self.steps, self.halt = points, steps, halt

    @classmethod
    def of_temperatures(
        cls, machine: RBM, base: RBM, steps: int, halt: Callable[[], None] = lambda: None
    ) -> "Path":
        """From the base straight to the machine, denser near it."""
        return cls([base, *(between(base, machine, share) for share in TEMPERATURES), machine], steps, halt)

    def at(self, step: int) -> RBM:
        self.halt()
        place = step * (len(self.points) - 1) / self.steps
        first = min(int(place), len(self.points) - 2)
        return between(self.points[first], self.points[first + 1], place - first)

    @property
    def base_log_partition(self) -> float:
        """log Z of the first machine."""
        base = self.points[0]
        return float(softplus(base.visible_bias.double()).sum() + softplus(base.hidden_bias.double()).sum())

    def draw(self, chains: int, *key) -> Tensor:
        """Exact samples of the first machine, uint8 [chains, D]."""
        probability = self.points[0].visible_bias.sigmoid().expand(chains, -1)
        return gibbs.bernoulli(probability, keyed.key(*key, "base", np.arange(chains)))


class Chains(NamedTuple):
    """Where chains that followed a path have come to, uint8 [N, D], and their log weights, float64 [N]."""

    states: Tensor
    log_weights: Tensor


@torch.no_grad()
def anneal(path: Path, order: Iterable[int], states: Tensor, *key) -> Chains:
    """Chains from ``states`` through the path's machines of ``order``: before each sweep of a machine the log weight
    grows by log of its unnormalised probability over that of the machine before."""
    steps = iter(order)
    machine = path.at(next(steps))
    log_weights = torch.zeros(len(states), dtype=torch.float64, device=states.device)
    for step in steps:
        before, machine = machine, path.at(step)
        activations = machine.activations(states)
        log_weights -= before.log_density(states, before.activations(states))
        log_weights += machine.log_density(states, activations)
        states = machine.sweep(activations, *key, step)
    return Chains(states, log_weights)


def forward(path: Path, chains: int, seed: int) -> Chains:
    """Chains from the base to the machine: their states are samples drawn afresh."""
    return anneal(path, range(path.steps + 1), path.draw(chains, seed, "forward"), seed, "forward")


def backward(path: Path, states: Tensor, seed: int) -> Chains:
    """Chains from samples of the machine to the base."""
    return anneal(path, range(path.steps, -1, -1), states, seed, "backward")


def trajectory(path: Path, images: Tensor, seed: int) -> Chains:
    """Chains from binary images, uint8 [N, D], to the base: `backward` after one sweep of the machine. An image's
    log p(v) + log Z, plus its log weight, minus log Z of the base, is below its log-likelihood under the chain that
    `forward` runs, in the mean over draws."""
    machine = path.at(path.steps)
    return backward(path, machine.sweep(machine.activations(images), seed, "first"), seed)


class Estimate(NamedTuple):
    """A log, its standard error, and the effective sample size of the weights that it is of."""

    value: float
    error: float
    ess: float


def log_mean(log_weights: Tensor) -> Estimate:
    """log of the mean of exp(log_weights), float64 [N]; its standard error by the delta method."""
    count = len(log_weights)
    share = log_weights.softmax(0)
    ess = float(1 / share.square().sum())
    value = float(log_weights.logsumexp(0)) - math.log(count)
    return Estimate(value, math.sqrt(max(0.0, 1 / ess - 1 / count) * count / max(1, count - 1)), ess)
