"""How likely an energy model finds binary images, in nats an image: exactly where its states can be gone through, else
between an estimate that is too high in the mean and one that is too low, with a bound beside them.
"""

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.nets.energies import BITS, RBM
from pipeline.samplers import ais, diagnostics
from pipeline.settings.densities import Likelihood


class Evaluation(NamedTuple):
    """``metrics`` by name; chains drawn afresh, and those that went on from particles, uint8 [n, D]."""

    metrics: dict[str, float]
    fresh: Tensor
    particles: Tensor


@torch.no_grad()
def evaluate(
    net: RBM, states: Tensor, particles: Tensor | None, settings: Likelihood, seed: int,
    halt: Callable[[], None] = lambda: None,
) -> Evaluation:  # fmt: skip
    """The mean log-likelihood of binary images, uint8 [N, D]. ``particles``, uint8 [n, D]: chains of the training;
    where there are none, fresh ones take their place. ``halt`` may end it at any step, by an error.

    Metrics: log_likelihood (exact, or by reverse AIS and so rather too low), log_likelihood_high (by AIS, rather too
    high), log_likelihood_bound (of the annealed chain, too low whatever the chains did: `ais.trajectory`); _se of each
    from its partition function alone, images_se of the mean over images; of the chains what shows whether they mix.
    """
    machine = net.uncentred()
    base = machine.base()._replace(visible_bias=net.visible_bias.detach())
    path = ais.Path.of_temperatures(machine, base, settings.temperatures, halt)
    fresh = ais.forward(path, settings.chains, seed)
    start = fresh.states if particles is None else particles[: settings.chains]
    ends, chains = settle(machine, start, settings.sweeps, seed)
    log_density = machine.log_density(states, machine.activations(states))
    metrics = {"images_se": float(log_density.std()) / math.sqrt(len(states))} | chains
    mean = float(log_density.mean())
    if net.bits <= BITS:
        return Evaluation({"log_likelihood": exact(net, states)} | metrics, fresh.states, ends)
    mean -= path.base_log_partition
    up = ais.log_mean(fresh.log_weights)
    down = ais.log_mean(ais.backward(path, ends, seed).log_weights)
    bound = ais.trajectory(path, states[: settings.chains], seed).log_weights
    metrics |= {
        "log_likelihood": mean + down.value,
        "log_likelihood_se": down.error,
        "log_likelihood_ess": down.ess,
        "log_likelihood_high": mean - up.value,
        "log_likelihood_high_se": up.error,
        "log_likelihood_high_ess": up.ess,
        "log_likelihood_bound": mean + float(bound.mean()),
        "log_likelihood_bound_se": float(bound.std()) / math.sqrt(len(bound)),
    }
    return Evaluation(metrics, fresh.states, ends)


def settle(machine: ais.RBM, states: Tensor, sweeps: int, seed: int) -> tuple[Tensor, dict[str, float]]:
    """States after so many sweeps, and split R-hat and effective size of their energies on the way."""
    energies = []
    for sweep in range(sweeps):
        activations = machine.activations(states)
        energies.append(-machine.log_density(states, activations))
        states = machine.sweep(activations, seed, "settle", sweep)
    values = torch.stack(energies)
    return states, {"chain_rhat": diagnostics.rhat(values), "chain_ess": diagnostics.effective_size(values)}


def exact(net: RBM, states: Tensor) -> float:
    """Mean log-likelihood of binary states by all states of the fewer units, in float64."""
    net = copy.deepcopy(net).double()
    return float(-net.energy(states.double()).mean() - net.log_partition())


def protocol(objective: Any, images: int, settings: Likelihood) -> dict[str, Any]:
    """What a likelihood is of, without which it says nothing."""
    how = "exact" if objective.net.bits <= BITS else "annealed importance sampling"
    return {"binarisation": objective.settings.binarisation, "images": images, "by": how} | settings.model_dump()
