"""Objectives of all neighbours of an image, for an RBM of 784 and 500 units, beside an energy for each flip."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.rounds import compare, rounds
from pipeline import keyed, objectives
from pipeline.image import Image
from pipeline.objectives.base import Batch, Setup
from pipeline.objectives.neighbours import Neighbours
from pipeline.settings import densities as kinds
from pipeline.settings.nets import RBM
from pipeline.world import World

IMAGES = 8
"""What the loop's graph of 784 energies has room for."""
CLOSE = 1e-6
"""Largest difference of loss and gradients, over the largest of them."""


def one_by_one(objective: Neighbours, x: Tensor) -> Tensor:
    """The loss by as many calls of the energy as there are pixels, as ebmkit computes it."""
    low, high = objective.energy(x), []
    for i in range(x.shape[1]):
        flipped = x.clone()
        flipped[:, i] = 1 - flipped[:, i]
        high.append(objective.energy(flipped))
    return objective.losses(low, torch.stack(high, 1)).mean()


def at_once(objective: Neighbours, x: Tensor) -> Tensor:
    """The same by the net's own flips."""
    return objective(Batch((x,), torch.arange(len(x)), dtype=x.dtype)).loss


def gradients(loss: Callable[[Neighbours, Tensor], Tensor], objective: Neighbours, x: Tensor) -> list[Tensor]:
    """Of the loss; and the loss itself."""
    value = loss(objective, x)
    return [value.detach(), *torch.autograd.grad(value, list(objective.parameters()))]


def neighbours(settings: Any) -> dict:
    """The figure of one objective. Raises AssertionError where both do not come to the same in float64."""
    setup = Setup(Image(1, 28, (0.1,), (0.3,)), IMAGES, RBM(), World(), 0)
    objective: Any = objectives.build(settings.model_copy(update={"binarisation": "threshold"}), setup)
    with torch.no_grad():
        objective.net.weight.mul_(20)
    x = (torch.from_numpy(keyed.uniform(IMAGES * 784, "flips")).view(IMAGES, 784) < 0.13).float()
    exact = copy.deepcopy(objective).double()
    for one, other in zip(*(gradients(f, exact, x.double()) for f in (at_once, one_by_one)), strict=True):
        assert (one - other).abs().max() <= CLOSE * other.abs().max()
    work = {f.__name__: partial(gradients, f, objective, x) for f in (at_once, one_by_one)}
    print(f"\n{settings.kind}: loss and gradient of {IMAGES} images, equal to {CLOSE:g}")
    return compare(rounds(work), IMAGES, "images/s", "at_once", "one_by_one")


def ratio_matching() -> dict:
    return neighbours(kinds.RatioMatching())


def pseudo_likelihood() -> dict:
    return neighbours(kinds.PseudoLikelihood())


def probability_flow() -> dict:
    return neighbours(kinds.MPF())
