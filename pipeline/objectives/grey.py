"""Contrastive divergence of continuous images: an energy p(x) proportional to exp(-E(x) / T), lowered on images and
raised where chains of Langevin steps lead.

T is the sampler's temperature; where its noise is set by itself, the one that this comes to. While chains run, the
net's parameters stay as they are and get no gradient.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import keyed
from pipeline.objectives.base import Batch, Setup, Sign, Step
from pipeline.objectives.densities import STEEP, WIDE, Density
from pipeline.objectives.energies import full
from pipeline.objectives.memory import GreyParticles
from pipeline.objectives.samples import SAMPLES, pictures
from pipeline.samplers import langevin
from pipeline.settings import scores as kinds
from pipeline.sheets import Picture

FRESH = 20
"""Times a training step's chain that one from noise is let run, and is looked at on its way."""
INSIDE = 1e-4
"""Least distance of pixels from 0 and 1 in chains of their log-odds."""


class GreyChains(Density):
    """Energies of images against those of chains' ends, L = E[E(x)] - E[E(y)], x with a little noise and y without a
    gradient of its own."""

    settings: kinds.GreyChains

    def caveats(self) -> Iterator[str]:
        sampler = self.settings.sampler
        if isinstance(sampler, kinds.ShortRun):
            yield (
                f"sampler short_run: its chains sample exp(-E / T) at T = {sampler.temperature:.3g}: its energies are "
                f"no log-densities"
            )

    def states(self, batch: Batch) -> Tensor:
        """The batch's images with noise on them, [B, D]."""
        images = full(batch.views[0]).flatten(1)
        return images + self.settings.deviation * batch.normal("noise", images.shape[1])

    def chain(self, x: Tensor, *key: Any) -> Tensor:
        """States [n, D] at the end of their chains, the numbers of which are drawn by a key of one part a row."""
        sampler, keys = self.settings.sampler, keyed.key(*key, "langevin")
        target = langevin.Target(self.energy, sampler.temperature, (0.0, 1.0) if sampler.bounds == "reflect" else None)
        if sampler.bounds != "logit":
            return langevin.langevin(target, x, keys, sampler.step, sampler.steps)
        logits = x.clamp(INSIDE, 1 - INSIDE).logit()
        return langevin.langevin(target.in_logits(), logits, keys, sampler.step, sampler.steps).sigmoid()

    def contrast(self, low: Tensor, high: Tensor, starts: Tensor, ends: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of energies of images and of chains, and what is logged of their way."""
        moved = (ends - starts).square().mean().sqrt().to(low.dtype)
        return low.mean() - high.mean() + self.penalty(low, high), {"density/travelled": moved}

    def collapse_signs(self, scalars: dict[str, float]) -> dict[str, Sign]:
        """Energies that run away, and chains that are not where images are: at a temperature that is set, in units of
        it."""
        sampler = self.settings.sampler
        unit = sampler.temperature if isinstance(sampler, kinds.Langevin) else 1.0
        low, gap = scalars["energy/low"], scalars["energy/gap"]
        signs = {}
        if abs(low) > STEEP * self.net.visible * unit:
            signs["magnitude"] = Sign(f"energies of data have run to {low:.3g}")
        if abs(gap) > WIDE * self.net.visible * unit:
            signs["chains"] = Sign(f"energies of chains are {gap:.3g} over those of data: they have lost each other")
        return signs

    def walk(self, count: int, seed: int) -> Tensor:
        """Chains from uniform noise, FRESH times as long as a step's: [FRESH + 1, count, D], the first the noise."""
        some, numbers = next(self.net.parameters()), np.arange(count)
        draws = keyed.uniform(self.net.visible, seed, "sample", numbers)
        states = [torch.from_numpy(draws).to(some)]
        for part in range(FRESH):
            states.append(self.chain(states[-1], seed, "sample", part, numbers))
        return torch.stack(states)

    def sample(self, count: int, seed: int) -> Tensor:
        """Where those chains end, [count, D]."""
        return self.walk(count, seed)[-1]

    @torch.no_grad()
    def figures(self, images: Tensor, classes: list[str], seed: int) -> dict[str, Picture]:
        """Samples by their energies, chains on their way from noise."""
        states, sampler = self.walk(SAMPLES, seed), self.settings.sampler
        energies, of_data = (self.energy(x.flatten(1)) for x in (states[-1], images))
        how = f"{FRESH * sampler.steps:,} Langevin steps from uniform noise at temperature {sampler.temperature:.3g}"
        heads = [f"{part * sampler.steps:,}" for part in range(FRESH + 1)]
        way = "Chains: a line each from noise to a sample, the steps above."
        return pictures(states, images.shape[1:], energies, of_data, how, heads, way)


class GreyCD(GreyChains):
    """Contrastive divergence (Hinton 2002, eq. 5) of continuous images: E(x) - E(y), y at the end of a chain that
    starts from x itself."""

    Settings = kinds.GreyCD

    def score(self, embedded: tuple[Tensor, ...], batch: Batch) -> Step:
        """low [B], high [B, 1]."""
        x, low, _ = embedded
        starts = x.detach()
        ends = self.chain(starts, batch.seed, batch.epoch, batch.ids.cpu().numpy())
        high = self.energy(ends)[:, None]
        loss, scalars = self.contrast(low, high, starts, ends)
        return Step(loss, low, high, scalars)

    def energy_count(self, share: int, batch: int) -> int:
        return share


class GreyPCD(GreyChains):
    """Persistent contrastive divergence (Tieleman 2008, sec. 2) of continuous images, as IGEBM has it (Du & Mordatch
    2019, arXiv 1903.08689, algorithm 1): E(x) - E(y), y particles whose chains go on, some of them anew from noise."""

    Settings = kinds.GreyPCD
    settings: kinds.GreyPCD

    def __init__(self, settings: kinds.GreyPCD, setup: Setup):
        super().__init__(settings, setup)
        self.particles = GreyParticles(
            settings.particles, self.net.visible, setup.seed, setup.world, moved=settings.moved
        )
        self.commit_changes = (*self.commit_changes, "particles.")

    def score(self, embedded: tuple[Tensor, ...], batch: Batch) -> Step:
        """low [B], high [1, K]: this rank's share of the particles in this micro-batch."""
        _, low, _ = embedded
        numbers, states = self.particles.part(batch.piece, batch.step)
        starts = self.particles.renewed(states, numbers, self.settings.refresh, batch.seed, batch.step)
        ends = self.chain(starts, batch.seed, batch.step, numbers)
        high = self.energy(ends)[None]
        loss, scalars = self.contrast(low, high, starts, ends)
        return Step(loss, low, high, scalars, {"particles": ends})

    @torch.no_grad()
    def commit(self, pending: dict[str, Tensor], batch_step: int, progress: float = 0.0) -> None:
        super().commit(pending, batch_step, progress)
        self.particles.write(pending["particles"], batch_step)

    def energy_count(self, share: int, batch: int) -> int:
        return (self.settings.moved or self.settings.particles) * share // batch

    def replicated(self) -> dict[str, Tensor]:
        owned = ("particles.states",) if self.particles.size > 1 else ()
        return {k: v for k, v in super().replicated().items() if k not in owned}
