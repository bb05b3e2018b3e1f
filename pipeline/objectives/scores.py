"""Score matching: energies of continuous images, p(x) proportional to exp(-E(x)), trained by their slopes alone.

No partition function and no chain: an energy whose slope is data's wherever there are images is data's but for a
constant. Images have noise on them, from little to much, so that there is a slope between them too.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline import keyed
from pipeline.objectives.base import PATIENCE_STEPS, Batch, Sign, Step
from pipeline.objectives.densities import STEEP, Density
from pipeline.objectives.energies import full, full_precision
from pipeline.objectives.samples import SAMPLES, pictures
from pipeline.samplers import langevin
from pipeline.settings.scores import ScoreMatching as Settings
from pipeline.sheets import Picture

FLAT = 0.01
"""Share of the noise, at least, that slopes tell."""
STEP, STEPS = 0.1, 100
"""Of annealed Langevin: its step in units of the level's variance, and the steps of a level."""


class ScoreMatching(Density):
    """Denoising score matching (Vincent 2011, eq. 9) over a ladder of noise (Song & Ermon 2019, arXiv 1907.05600, eq.
    6): L = sigma^2 / 2 || s(x + sigma e) + e / sigma ||^2 with s the density's slope - dE_sigma/dx.

    The energy under noise of deviation sigma is E_sigma(x) = E(x) / sigma (Song & Ermon 2020, arXiv 2006.09011,
    technique 3), so that L = 1/2 || e - dE/dx ||^2: the net's slope tells the noise. ``sliced``: L = 1/2 || dE/dx
    ||^2 - sigma v^T d(v^T dE/dx)/dx, v of signs drawn at random (Song et al. 2019, arXiv 1905.07088, eq. 8).
    """

    Settings = Settings
    settings: Settings

    def deviations(self) -> list[float]:
        """The noise's, from the greatest to the least."""
        least, greatest = self.settings.noise
        return np.geomspace(greatest, least, self.settings.levels).tolist() if self.settings.levels > 1 else [least]

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """-> energies of images at the least noise [B], the loss [B], the noise [B, D] and the slope there [B, D]."""
        images, ladder = full(batch.views[0]).flatten(1), self.deviations()
        levels = (batch.uniform("level") * len(ladder)).long()
        deviation = torch.tensor(ladder, dtype=images.dtype, device=images.device)[levels][:, None]
        noise = batch.normal("noise", images.shape[1])
        # Attention has second derivatives only where it is written out.
        with torch.enable_grad(), full_precision(images), sdpa_kernel(SDPBackend.MATH):
            x = (images + deviation * noise).detach().requires_grad_()
            energies = self.net.energy(x)
            (slope,) = torch.autograd.grad(energies.sum(), x, create_graph=True)
            if self.settings.loss == "denoising":
                losses = (noise - slope).square().sum(1) / 2
            else:
                signs = (batch.uniform("slice", images.shape[1]) < 0.5).to(x.dtype) * 2 - 1
                (curve,) = torch.autograd.grad((slope * signs).sum(), x, create_graph=True)
                losses = slope.square().sum(1) / 2 - (deviation * curve * signs).sum(1)
            losses = losses + 0 * energies  # ranks wait for gradients of all weights, of those too that add a constant
        return self.energy(images) / ladder[-1], losses, noise, slope

    def score(self, embedded: tuple[Tensor, ...], batch: Batch) -> Step:
        """low [B], high [B, 0]."""
        low, losses, noise, slope = embedded
        noise, slope = noise.detach(), slope.detach()
        scalars = {
            "energy/volume": (noise * slope).sum(1).mean(),
            "density/untold": (noise - slope).square().mean(),
        }
        loss = losses.mean()
        if self.settings.energy_penalty:
            loss = loss + self.settings.energy_penalty * low.square().mean()
        return Step(loss, low, low.new_empty(len(low), 0), scalars)

    def collapse_signs(self, scalars: dict[str, float]) -> dict[str, Sign]:
        """Energies without slopes, or ones that run away. In the mean over noise, noise times slope is the variance
        times the curvature: what limits the volume of low energies."""
        rise, low, signs = scalars["energy/volume"] / self.net.visible, scalars["energy/low"], {}
        if rise < FLAT:
            signs["flat"] = Sign(f"slopes tell {100 * rise:.2g} % of the noise: energies are flat", 4 * PATIENCE_STEPS)
        if abs(low) > STEEP * self.net.visible:
            signs["magnitude"] = Sign(f"energies of data have run to {low:.3g} nats")
        return signs

    def target(self, deviation: float) -> langevin.Target:
        """The density of images under noise of this deviation, for chains."""
        return langevin.Target(lambda x: self.net.energy(x) / deviation)

    def walk(self, count: int, seed: int) -> Tensor:
        """Annealed Langevin (Song & Ermon 2019, algorithm 1) from noise: chains after each level, then once down the
        slope, by which the last noise is taken away (Jolicoeur-Martineau et al. 2020, arXiv 2009.05475, sec. 3.1):
        [levels + 2, count, D], the first the noise itself."""
        ladder, some = self.deviations(), next(self.net.parameters())
        keys = keyed.key(seed, "sample", np.arange(count))
        start = torch.empty(count, self.net.visible, dtype=some.dtype, device=some.device)
        states = [0.5 + ladder[0] * langevin.normal(keyed.extend(keys, "start"), start)]
        for level, deviation in enumerate(ladder):
            step_keys = keyed.extend(keys, level)
            states += [langevin.langevin(self.target(deviation), states[-1], step_keys, STEP * deviation**2, STEPS)]
        last = ladder[-1] ** 2 * self.target(ladder[-1]).at(states[-1]).gradient
        return torch.stack([*states, states[-1] - last])

    def sample(self, count: int, seed: int) -> Tensor:
        """Where those chains end, [count, D]."""
        return self.walk(count, seed)[-1]

    @torch.no_grad()
    def figures(self, images: Tensor, classes: list[str], seed: int) -> dict[str, Picture]:
        """Samples by their energies, chains on their way from noise, and the energies of simple images beside them."""
        states, shape = self.walk(SAMPLES, seed), images.shape[1:]
        energies, of_data = (self.energy(x.flatten(1)) / self.deviations()[-1] for x in (states[-1], images))
        how = f"annealed Langevin from noise, {len(states) - 2} levels of {STEPS} steps at temperature 1"
        heads = ["noise", *[f"{deviation:.2g}" for deviation in self.deviations()], "denoised"]
        way = "Chains: a line each from noise through the levels, whose noise is above them, to a sample."
        return pictures(states, shape, energies, of_data, how, heads, way)
