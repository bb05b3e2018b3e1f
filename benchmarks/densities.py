"""RBMs of 784 and 500 units: an update by persistent chains beside sklearn's, and objectives of all neighbours of an
image beside an energy for each flip."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.neural_network import BernoulliRBM
from torch import Tensor

from benchmarks.rounds import compare, rounds
from pipeline import keyed, objectives
from pipeline.image import Image
from pipeline.objectives.base import Batch, Setup
from pipeline.objectives.neighbours import Neighbours
from pipeline.settings import densities as kinds
from pipeline.settings.nets import RBM
from pipeline.world import World, keep_memory

BATCH, UPDATES, RATE = 500, 20, 0.1
"""Images, and particles, of an update; updates a round; learning rate."""
INK = 0.13
"""Share of the pixels that are ones, MNIST's."""
IMAGES = 8
"""What the loop's graph of 784 energies has room for."""
CLOSE = 1e-6
"""Largest difference of loss and gradients, over the largest of them."""


def updates(objective: Any, grey: Tensor, half: bool) -> None:
    """As the loop makes them: binarise, a sweep of the particles, gradient, step, commit."""
    optimiser, ids = torch.optim.SGD(objective.parameters(), RATE), torch.arange(len(grey))
    for step in range(UPDATES):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            result = objective(Batch((grey,), ids, step))
            result.loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        objective.commit(result.pending, step)


def pcd_update() -> dict:
    """Persistent contrastive divergence with a sweep an update, all in fp32; sklearn's images are binary already. Also
    with products in bf16, where this CPU has them."""
    keep_memory()
    numbers = keyed.uniform(784, "ink", np.arange(BATCH))
    grey = 0.5 * torch.from_numpy(numbers < 2 * INK).float().view(BATCH, 1, 28, 28)
    states = (numbers < INK).astype(np.float32)
    setup = Setup(Image(1, 28, (0.1,), (0.3,)), 60_000, RBM(), World(), 0, pixel_means=grey.mean(0))
    objective = objectives.build(kinds.PCD(particles=BATCH), setup)
    peer = BernoulliRBM(500, learning_rate=RATE, batch_size=BATCH, n_iter=1, random_state=0)
    peer.fit(states)
    random = np.random.RandomState(0)
    work = {
        "pcd": partial(updates, objective, grey, False),
        "sklearn": lambda: [peer._fit(states, random) for _ in range(UPDATES)],
    }
    if World().fast_bf16():
        work["pcd_bf16"] = partial(updates, copy.deepcopy(objective), grey, True)
    return compare(rounds(work), UPDATES, "updates/s", "pcd", "sklearn")


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
