"""Langevin and Hamiltonian chains for p(x) proportional to exp(-E(x) / T) of continuous x.

A chain's numbers are those of its row's key and of the step, so that a chain depends neither on its batch mates nor on
the number of ranks. The gradient is taken by x alone: whatever parameters E has get none.

Noise follows from the step and the temperature. Where both are free, as in the short runs by which deep energies are
usually trained, the chain has a temperature all the same, `effective_temperature`, and E is no log-density at another.
"""

from collections.abc import Callable, Iterator
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from pipeline import keyed
from pipeline.samplers import gibbs
from pipeline.tensors import send

MALA, HMC = 0.574, 0.8
"""Acceptance at which Langevin steps (Roberts & Rosenthal 1998), and longer Hamiltonian paths (0.65 at best by theory,
more where gradients vary: Betancourt, Byrne & Girolami 2014, arXiv 1411.6669), go furthest for their cost."""
DECAY = 0.6
"""Of the corrections of a step's length while it is tuned: the t-th has weight t^-DECAY (Robbins & Monro 1951)."""


class Target(NamedTuple):
    """``energy``: states [N, ...] -> E, [N]; ``bounds``: of every coordinate, at which chains are reflected."""

    energy: Callable[[Tensor], Tensor]
    temperature: float = 1.0
    bounds: tuple[float, float] | None = None

    def at(self, x: Tensor) -> "Point":
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self.energy(x) / self.temperature
            (gradient,) = torch.autograd.grad(energy.sum(), x)
        return Point(x.detach(), energy.detach(), gradient)

    def reflect(self, x: Tensor, momentum: Tensor) -> tuple[Tensor, Tensor]:
        """States [N, ...] folded back between the bounds, and momenta turned around as often."""
        if self.bounds is None:
            return x, momentum
        low, width = self.bounds[0], self.bounds[1] - self.bounds[0]
        folds = torch.floor((x - low) / width)
        odd = folds.remainder(2)
        inside = (x - low) - folds * width
        return low + torch.where(odd > 0, width - inside, inside), momentum * (1 - 2 * odd)

    def in_logits(self) -> "Target":
        """The same density of z = log(x / (1 - x)), for x between 0 and 1: no bounds, and the change of volume added
        to the energy."""

        def energy(z: Tensor) -> Tensor:
            return self.energy(z.sigmoid()) + self.temperature * (softplus(z) + softplus(-z)).flatten(1).sum(1)

        return Target(energy, self.temperature)


class Point(NamedTuple):
    """States [N, ...], E / T at them [N], and its gradient [N, ...]."""

    x: Tensor
    energy: Tensor
    gradient: Tensor


class State(NamedTuple):
    """Chains after a step. ``length``: of their next step, [N]; ``acceptance``: probability of the last one, [N]."""

    point: Point
    length: Tensor
    acceptance: Tensor


def effective_temperature(step: float, noise: float) -> float:
    """T at which x <- x - step dE/dx + noise N(0, 1) samples, in the limit of small steps: noise^2 / (2 step).

    IGEBM (Du & Mordatch 2019, arXiv 1903.08689) with step 10 and noise 0.005: 1.25e-6.
    """
    return noise**2 / (2 * step)


def normal(keys: np.ndarray, like: Tensor) -> Tensor:
    """Standard normal numbers, a row for each key, uint64 [N], in the shape of ``like`` [N, ...]."""
    if like.device.type == "cuda":
        return on_device(keys, like)
    return send(keyed.normal_of(keys, like[0].numel()), like.device).to(like.dtype).view_as(like)


def on_device(keys: np.ndarray, like: Tensor) -> Tensor:
    """The same computed on the device of ``like``, from the same uniform numbers."""
    u, v = gibbs.uniform(keys, 2 * like[0].numel(), like.device).chunk(2, 1)
    return ((-2 * torch.log1p(-u)).sqrt() * torch.cos(2 * torch.pi * v)).to(like.dtype).view_as(like)


def langevin(target: Target, x: Tensor, keys: np.ndarray, step: float, steps: int) -> Tensor:
    """States [N, ...] after ``steps`` of x <- x - step dE/dx + sqrt(2 step T) N(0, 1), never refused.

    The density they tend to is off by a term in the step: on N(0, 1) at T = 1 the variance is 1 / (1 - step / 2).
    """
    scale = (2 * step * target.temperature) ** 0.5
    for i in range(steps):
        noise = normal(keyed.extend(keys, i), x)
        drift = step * target.temperature * target.at(x).gradient
        x, _ = target.reflect(x - drift + scale * noise, noise)
    return x


def mala(target: Target, x: Tensor, keys: np.ndarray, step: float, tuning: int = 0) -> Iterator[State]:
    """Chains of Langevin steps that are accepted or refused, so that what they keep is exp(-E / T) itself (Roberts &
    Tweedie 1996): a Hamiltonian path of one leapfrog of length sqrt(2 step T) is the same proposal."""
    return chains(target, x, keys, (2 * step * target.temperature) ** 0.5, 1, tuning, MALA)


def hmc(
    target: Target, x: Tensor, keys: np.ndarray, length: float, leapfrogs: int, tuning: int = 0, jitter: float = 0.2
) -> Iterator[State]:
    """Chains of Hamiltonian paths of ``leapfrogs`` steps (Neal 2011, arXiv 1206.1901, sec. 3.2), whose lengths vary
    from path to path by a share ``jitter``: a path of a whole period would end at its start."""
    return chains(target, x, keys, length, leapfrogs, tuning, HMC, jitter)


def chains(
    target: Target,
    x: Tensor,
    keys: np.ndarray,
    length: float,
    leapfrogs: int,
    tuning: int,
    goal: float,
    jitter: float = 0.0,
) -> Iterator[State]:
    """Chains from states [N, ...] on, without an end, of keys uint64 [N]. In the first ``tuning`` steps each has its
    own length drawn to where its acceptance is ``goal``, by its own history alone; from then on it stays."""
    point, lengths = target.at(x), torch.full((len(x),), length, dtype=x.dtype, device=x.device)
    for i in count():
        step_keys = keyed.extend(keys, i)
        momentum = normal(step_keys, x)
        draws = send(keyed.uniform_of(keyed.extend(step_keys, "accept"), 2), x.device).to(x.dtype)
        varied = lengths * (1 + jitter * (2 * draws[:, 1] - 1))
        end, last = leapfrog(target, point, momentum, varied, leapfrogs)
        fall = point.energy - end.energy + _kinetic(momentum) - _kinetic(last)
        acceptance = fall.nan_to_num(nan=-torch.inf).clamp(max=0).exp()
        point = _choose(draws[:, 0] < acceptance, end, point)
        if i < tuning:
            lengths = lengths * ((i + 1) ** -DECAY * (acceptance - goal)).exp()
        yield State(point, lengths, acceptance)


def leapfrog(target: Target, point: Point, momentum: Tensor, length: Tensor, steps: int) -> tuple[Point, Tensor]:
    """The point and the momentum [N, ...] at a path's end, ``length`` [N] of its steps."""
    length = length.view(-1, *[1] * (momentum.ndim - 1))
    for _ in range(steps):
        momentum = momentum - length / 2 * point.gradient
        x, momentum = target.reflect(point.x + length * momentum, momentum)
        point = target.at(x)
        momentum = momentum - length / 2 * point.gradient
    return point, momentum


def _kinetic(momentum: Tensor) -> Tensor:
    return momentum.square().flatten(1).sum(1) / 2


def _choose(accepted: Tensor, new: Point, old: Point) -> Point:
    """Of each row the new point where it is accepted, [N]."""
    rows = accepted.view(-1, *[1] * (new.x.ndim - 1))
    return Point(
        torch.where(rows, new.x, old.x),
        torch.where(accepted, new.energy, old.energy),
        torch.where(rows, new.gradient, old.gradient),
    )
