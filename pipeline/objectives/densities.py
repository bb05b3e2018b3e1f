"""Densities: energies of whole binary images, p(x) proportional to exp(-E(x)), lowered on data and raised elsewhere.

Only where all states can be gone through is the gradient of the likelihood known, E_data[dE] - E_model[dE]; the others
raise the energies of chains' ends, of noise or of an image's neighbours in place of the model's own samples.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import keyed
from pipeline.errors import ConfigError
from pipeline.nets import energies
from pipeline.objectives.base import Batch, Objective, Setup, Sign, Step
from pipeline.objectives.energies import full, full_precision
from pipeline.objectives.memory import Particles
from pipeline.samplers import gibbs
from pipeline.settings import densities as kinds
from pipeline.tensors import lowered

STEEP = 100.0
"""Mean energy of data, in nats a pixel, above which energies have run away."""
WIDE = 1.0
"""Energies of chains over those of data, in nats a pixel, beyond which the chains have lost the model."""


class Density(Objective):
    """What all energies of binary images share: their binarisation, and the RBM's centring."""

    normalised = False
    settings: Any

    def __init__(self, settings: Any, setup: Setup):
        super().__init__()
        self.settings, self.world = settings, setup.world
        self.net = energies.build(setup.net, setup.image, setup.seed, setup.pixel_means)
        if self.net.centred:
            self.commit_changes = ("net.visible_bias", "net.hidden_offset")
        if self.net.spectral:
            self.commit_changes = tuple(f"net.{k}" for k, _ in self.net.named_buffers() if ".parametrizations." in k)

    def states(self, batch: Batch) -> Tensor:
        """The batch's images as binary states [B, D]."""
        return binarise(batch, self.settings.binarisation)

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """-> states [B, D], their energies [B] and the probabilities of their hidden units [B, H]."""
        x = self.states(batch)
        return x, *self.energy_and_hidden(x)

    def energy(self, x: Tensor) -> Tensor:
        return self.energy_and_hidden(x)[0]

    def energy_and_hidden(self, x: Tensor) -> tuple[Tensor, Tensor]:
        half = lowered(x)
        with full_precision(x):
            return self.net.energy_and_hidden(full(x), half)

    def penalty(self, low: Tensor, high: Tensor) -> Tensor:
        """What keeps energies near zero, 0-d."""
        if not self.settings.energy_penalty:
            return low.new_zeros(())
        return self.settings.energy_penalty * (low.square().mean() + high.square().mean())

    def statistics(self, hidden: Tensor) -> dict[str, Tensor]:
        """Pending rows that centre the net: the mean of this micro-batch's hidden units [B, H], from every rank."""
        return {"hidden": self.world.gather(hidden.mean(0, keepdim=True))} if self.net.centred else {}

    @torch.no_grad()
    def commit(self, pending: dict[str, Tensor], batch_step: int, progress: float = 0.0) -> None:
        if "hidden" in pending:
            self.net.recentre(pending["hidden"].mean(0))
        self.net.follow()

    def collapse_signs(self, scalars: dict[str, float]) -> dict[str, Sign]:
        """Energies of data that run away."""
        low = scalars["energy/low"]
        steep = abs(low) > STEEP * self.net.visible
        return {"magnitude": Sign(f"energies of data have run to {low:.3g} nats")} if steep else {}

    @property
    def encoder(self) -> nn.Module:
        return self.net


def binarise(batch: Batch, how: str) -> Tensor:
    """A batch's images in [0, 1] as binary states [B, D] of their dtype; a pixel that is no number stays one."""
    grey = batch.views[0].flatten(1)
    return bits(batch, how).to(grey.dtype) + 0 * grey


def bits(batch: Batch, how: str) -> Tensor:
    """A batch's images in [0, 1] as binary states, uint8 [B, D]."""
    grey = batch.views[0].flatten(1)
    if how == "threshold":
        return (grey > 0.5).to(torch.uint8)
    epoch = 0 if how == "static" else batch.epoch
    return gibbs.bernoulli(grey, keyed.key(batch.seed, epoch, batch.ids.cpu().numpy(), "binarise"))


class MaximumLikelihood(Density):
    """Maximum likelihood: L = E[E(x)] + log sum_y exp(-E(y)), y every state of the fewer of pixels and hidden units
    (Ackley, Hinton & Sejnowski 1985, whose gradient it has). What the others are measured by."""

    Settings = kinds.MaximumLikelihood

    def __init__(self, settings: kinds.MaximumLikelihood, setup: Setup):
        super().__init__(settings, setup)
        if self.net.bits > energies.BITS:
            raise ConfigError(
                f"objective maximum_likelihood goes through all states of {self.net.bits} units; expected at most "
                f"{energies.BITS}: fewer net.hidden, or another objective"
            )

    def score(self, embedded: tuple[Tensor, ...], batch: Batch) -> Step:
        """low [B], high [1, 2^bits]."""
        _, low, hidden = embedded
        with full_precision(low):
            high = self.net.every_energy()[None]
        log_partition = high.neg().logsumexp(1)[0]
        loss = low.mean() + log_partition + self.penalty(low, high)
        return Step(loss, low, high, {"density/log_partition": log_partition.detach()}, self.statistics(hidden))

    def energy_count(self, share: int, batch: int) -> int:
        return 1 << self.net.bits


class Chains(Density):
    """Energies of data against those of a Markov chain's ends, L = E[E(x)] - E[E(y)], y without a gradient of its own.

    The value of L says nothing of the likelihood; its gradient is the likelihood's where y is drawn from the model.
    """

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """-> states, uint8 [B, D], whose energies come with those of the chains' ends; and zeros [B], or no numbers
        where an image has a pixel that is none."""
        return bits(batch, self.settings.binarisation), 0 * full(batch.views[0]).flatten(1).sum(1)

    @torch.no_grad()
    def run(self, states: Tensor, *key: Any) -> Tensor:
        """States [B, D] after k sweeps, the numbers of which are drawn by a key of one part a row."""
        half = lowered(states)
        with full_precision(states):
            for sweep in range(self.settings.k):
                states = self.net.gibbs(states, keyed.key(*key, "gibbs", sweep), half)
        return states

    def against(self, embedded: tuple[Tensor, ...], starts: Tensor, ends: Tensor, shape: tuple[int, int]) -> Step:
        """The step of data against chains from ``starts`` to ``ends``, uint8 [n, D]: low [B], high of this shape."""
        x, blank = embedded
        energies, hidden = self.energy_and_hidden(torch.cat([x, ends]))
        low, high = energies[: len(x)] + blank, energies[len(x) :].view(shape)
        loss = low.mean() - high.mean() + self.penalty(low, high)
        moved = {"density/moved": (ends != starts).to(low.dtype).mean()}
        return Step(loss, low, high, moved, self.statistics(hidden[: len(x)]))

    def collapse_signs(self, scalars: dict[str, float]) -> dict[str, Sign]:
        """Also chains that are not where the model's mass is."""
        signs, gap = super().collapse_signs(scalars), scalars["energy/gap"]
        if abs(gap) > WIDE * self.net.visible:
            text = f"energies of chains are {gap:.3g} nats over those of data: they mix too slowly for this rate"
            signs["chains"] = Sign(text)
        return signs


class CD(Chains):
    """Contrastive divergence (Hinton 2002, eq. 5): E(x) - E(y), y after k sweeps of Gibbs sampling from x itself.

    Biased: modes of the model far from data are never seen.
    """

    Settings = kinds.CD

    def score(self, embedded: tuple[Tensor, ...], batch: Batch) -> Step:
        """low [B], high [B, 1]."""
        x, _ = embedded
        ends = self.run(x, batch.seed, batch.epoch, batch.ids.cpu().numpy())
        return self.against(embedded, x, ends, (-1, 1))

    def energy_count(self, share: int, batch: int) -> int:
        return share


class PCD(Chains):
    """Persistent contrastive divergence (Tieleman 2008, sec. 2; Younes 1989): E(x) - E(y), y particles whose chains
    never start again, k sweeps further at each step."""

    Settings = kinds.PCD

    def __init__(self, settings: kinds.PCD, setup: Setup):
        super().__init__(settings, setup)
        means = setup.pixel_means
        self.particles = Particles(
            settings.particles, self.net.visible, setup.seed, setup.world, means if means is None else means.flatten()
        )
        self.commit_changes = (*self.commit_changes, "particles.")

    def score(self, embedded: tuple[Tensor, ...], batch: Batch) -> Step:
        """low [B], high [1, K]: this rank's share of the particles in this micro-batch."""
        numbers, states = self.particles.part(batch.piece)
        states = self.particles.renewed(states, numbers, self.settings.refresh, batch.seed, batch.step)
        ends = self.run(states, batch.seed, batch.step, numbers)
        step = self.against(embedded, states, ends, (1, -1))
        return replace(step, pending=step.pending | {"particles": ends})

    @torch.no_grad()
    def commit(self, pending: dict[str, Tensor], batch_step: int, progress: float = 0.0) -> None:
        super().commit(pending, batch_step, progress)
        self.particles.write(pending["particles"])

    def energy_count(self, share: int, batch: int) -> int:
        return self.settings.particles * share // batch

    def replicated(self) -> dict[str, Tensor]:
        owned = ("particles.states",) if self.particles.size > 1 else ()
        return {k: v for k, v in super().replicated().items() if k not in owned}
