"""Autoencoders: the energy of an image is what its way through a narrow latent loses."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from pipeline import keyed, sheets
from pipeline.nets import decoders, seeded, trunks
from pipeline.objectives.base import PATIENCE_STEPS, Batch, Objective, Setup, Sign, Step
from pipeline.objectives.energies import directions, full
from pipeline.objectives.latents import ellipses, interpolations, plane, reconstructions
from pipeline.settings import objectives as kinds
from pipeline.sheets import Picture
from pipeline.tags import NARROW

SILENT = 0.05  # nats of KL, over all units
SHOWN, PATHS, PATH_STEPS = 32, 8, 10  # images reconstructed; paths between images, and images of a path
GRID, DRAWN = 16, 64  # images on a side of a latent plane; samples of the prior
ACTIVE = 0.01  # variance of a unit's mean over images
FLOOR = -6.0  # of log sigma: a 400th of a pixel's range


class Mean(nn.Module):
    """The first ``latent`` outputs of an encoder: what is probed and exported of an autoencoder."""

    def __init__(self, trunk: Any, outputs: int, latent: int):
        super().__init__()
        self.trunk, self.projection, self.features = trunk, nn.Linear(trunk.features, outputs), latent

    def outputs(self, images: Tensor) -> Tensor:
        """Images in [0, 1], [B, C, H, W] -> [B, outputs]."""
        return self.projection(self.trunk(images))

    def forward(self, images: Tensor) -> Tensor:
        """Images in [0, 1], [B, C, H, W] -> [B, latent]."""
        return self.outputs(images)[:, : self.features]


class AE(Objective):
    """Autoencoder (Rumelhart, Hinton & Williams 1986): E(y) = || y - Dec(Enc(y)) ||^2, summed over pixels.

    Nothing is pushed up: the volume of low energy is limited by the width of the latent.
    """

    Settings = kinds.AE
    normalised = False
    encoder_fields = ("latent",)
    parts = 1
    """Numbers the encoder gives for each latent unit."""

    def __init__(self, settings: Any, setup: Setup):
        super().__init__()
        self.settings, self.world, self.latent = settings, setup.world, settings.latent
        trunk = trunks.build(setup.net, setup.image, setup.world, setup.seed)
        with seeded(setup.seed, "init", "autoencoder"):
            self.mean = Mean(trunk, self.parts * self.latent, self.latent)
            self.decoder = decoders.build(settings.decoder, self.latent, setup.image)

    def code(self, images: Tensor) -> Tensor:
        """Images in [0, 1], [B, C, H, W] -> latent [B, latent]."""
        return self.mean(images)

    def decode(self, z: Tensor) -> Tensor:
        """Latent [B, latent] -> images [B, C, H, W], in [0, 1] but for what an unbounded decoder overshoots."""
        return self.decoder(z)

    def reconstruct(self, images: Tensor) -> Tensor:
        return self.decode(self.code(images))

    def corrupt(self, batch: Batch) -> Tensor:
        """What the encoder is shown of the batch's images."""
        return batch.views[0]

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """-> energies [B] and codes [B, latent]."""
        z = self.code(self.corrupt(batch))
        error = full(batch.views[0]) - full(self.decode(z))
        return error.square().flatten(1).sum(1), full(z)

    def score(self, embedded: tuple[Tensor, ...], batch: Batch) -> Step:
        low, z = embedded
        scalars = {"ae/error": low.detach().mean()}
        return Step(low.mean(), low, low.new_empty(len(low), 0), scalars, per_sample={"codes": z.detach()})

    def diagnostics(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        return {"energy/volume": directions(self.world.gather(step.per_sample["codes"]))}

    def collapse_signs(self, scalars: dict[str, float]) -> dict[str, Sign]:
        """Codes that are one point or, of several units, one line."""
        count, least = scalars["energy/volume"], min(NARROW, self.latent)
        text = f"the codes fill {count:.2g} directions of {self.latent}"
        return {"narrow": Sign(text, 4 * PATIENCE_STEPS)} if count < 0.99 * least else {}

    @torch.no_grad()
    def figures(self, images: Tensor, classes: list[str], seed: int) -> dict[str, Picture]:
        """Images over their reconstructions, and straight paths in latent space between some of them."""
        decoded = self.reconstruct(images)
        errors = (images - decoded).square().flatten(1).mean(1)
        shown = images[: 2 * PATHS]
        first, last = self.code(shown)[: 2 * (len(shown) // 2)].chunk(2)
        share = torch.linspace(0, 1, PATH_STEPS, device=images.device).view(1, -1, 1)
        paths = self.decode((first[:, None] * (1 - share) + last[:, None] * share).flatten(0, 1))
        return {
            "reconstructions": reconstructions(images[:SHOWN], decoded[:SHOWN], errors),
            "interpolations": interpolations(shown, paths, classes),
        }

    @property
    def encoder(self) -> nn.Module:
        return self.mean


class DAE(AE):
    """Denoising autoencoder (Vincent et al. 2008): E = || y - Dec(Enc(y + noise)) ||^2, noise drawn afresh.

    Pulled back from everywhere around the data, whatever the width of the latent.
    """

    Settings = kinds.DAE
    settings: kinds.DAE

    def corrupt(self, batch: Batch) -> Tensor:
        images = batch.views[0]
        return images + self.settings.noise * batch.normal("noise", *images.shape[1:])


class VAE(AE):
    """Variational autoencoder (Kingma & Welling 2014, arXiv 1312.6114, eq. 3): E = - ELBO = - log p(x|z) + KL.

    Summed over pixels and units, mean over the batch; KL_j = (V - log V - 1 + mu^2) / 2 (eq. 10). beta may rise during
    training (``warmup``) and units below ``free_bits``, in the mean over the global batch, are not pressed (Kingma et
    al. 2016, arXiv 1606.04934, eq. 15); the energies in ``low`` have beta 1 and all of the KL.
    """

    Settings = kinds.VAE
    settings: kinds.VAE
    parts = 2

    def __init__(self, settings: kinds.VAE, setup: Setup):
        super().__init__(settings, setup)
        self.coupled = settings.free_bits > 0  # they look at the mean over the batch
        if settings.likelihood == "gaussian":
            self.log_sigma = nn.Parameter(torch.zeros(()))

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images in [0, 1], [B, C, H, W] -> mean and log variance of q(z|x), [B, latent] each, at least fp32."""
        mean, logvar = full(self.mean.outputs(images)).chunk(2, 1)
        return mean, logvar

    def decode(self, z: Tensor) -> Tensor:
        """Latent [B, latent] -> mean of p(x|z), [B, C, H, W]."""
        out = self.decoder(z)
        return torch.sigmoid(out) if self.settings.likelihood == "bernoulli" else out

    def sample(self, count: int, seed: int) -> Tensor:
        """Means of p(x|z) at draws of the prior: [count, C, H, W]."""
        some = next(self.decoder.parameters())
        z = keyed.normal(self.latent, seed, np.arange(count), "sample")
        return self.decode(torch.from_numpy(z).to(some))

    @torch.no_grad()
    def figures(self, images: Tensor, classes: list[str], seed: int) -> dict[str, Picture]:
        """Also samples of the prior; of two latent units also where images lie in their plane, and what lies where."""
        told = "Samples: draws of the prior N(0, 1) of every latent unit, decoded (the mean of p(x|z))."
        samples = Picture(sheets.tile(self.sample(DRAWN, seed), 8), told)
        figures = super().figures(images, classes, seed) | {"samples": samples}
        if self.latent == 2:
            mean, logvar = (x.cpu() for x in self.encode(images))
            figures["latent/codes"] = ellipses(mean, logvar.mul(0.5).exp(), classes)
            quantiles = torch.erfinv(torch.linspace(-0.95, 0.95, GRID)) * 2**0.5
            figures["latent/plane"] = plane(self.decoded_grid(quantiles), quantiles)
        return figures

    def decoded_grid(self, values: Tensor) -> Tensor:
        """The points of a latent plane whose units have these values [n], decoded: [n^2, C, H, W], line by line, the
        second unit's largest value in the first line."""
        y, x = torch.meshgrid(values.flip(0), values, indexing="ij")
        return self.decode(torch.stack([x, y], -1).view(-1, 2).to(next(self.decoder.parameters())))

    def log_deviation(self) -> Tensor:
        """log sigma of p(x|z), 0-d: above FLOOR, smoothly, so that its gradient is nowhere 0 (Rybkin et al. 2021,
        arXiv 2006.13202, whose code clips softly at the same floor). Without one a constant image has no bound."""
        return FLOOR + softplus(self.log_sigma - FLOOR)

    def negative_log_likelihood(self, images: Tensor, z: Tensor) -> Tensor:
        """- log p(x|z), summed over pixels -> [B], at least fp32."""
        out = full(self.decoder(z))
        if self.settings.likelihood == "bernoulli":
            nats = binary_cross_entropy_with_logits(out, full(images), reduction="none")
        else:
            log_sigma = self.log_deviation()
            error = (full(images) - out) * torch.exp(-log_sigma)
            nats = 0.5 * error.square() + log_sigma + 0.5 * math.log(2 * math.pi)
        return nats.flatten(1).sum(1)

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """-> - log p(x|z) [B], mean and log variance [B, latent]."""
        mean, logvar = self.encode(batch.views[0])
        z = mean + torch.exp(0.5 * logvar) * batch.normal("epsilon", self.latent)
        return self.negative_log_likelihood(batch.views[0], z), mean, logvar

    def score(self, embedded: tuple[Tensor, ...], batch: Batch) -> Step:
        recon, mean, logvar = embedded
        kl = 0.5 * (logvar.exp() - logvar - 1 + mean.square())  # [B, latent]
        low = recon + kl.sum(1)
        pressed = kl.mean(0)
        if self.settings.free_bits:
            pressed = (self.world.sum(pressed) / self.world.size).clamp(min=self.settings.free_bits)
        beta = self.settings.beta
        if self.settings.warmup:
            beta *= min(1.0, batch.progress / self.settings.warmup)
        scalars = {
            "vae/elbo": -low.detach().mean(),
            "vae/recon": recon.detach().mean(),
            "vae/kl": kl.detach().sum(1).mean(),
            "energy/volume": kl.detach().sum(1).mean(),
        }
        loss = recon.mean() + beta * pressed.sum()
        return Step(loss, low, low.new_empty(len(low), 0), scalars, per_sample={"means": mean.detach()})

    def diagnostics(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        """The units whose mean varies with the image by more than 0.01 (Burda et al. 2016, arXiv 1509.00519)."""
        means = self.world.gather(step.per_sample["means"])
        return {"vae/active_units": (means.var(0, correction=0) > ACTIVE).to(means.dtype).sum()}

    def collapse_signs(self, scalars: dict[str, float]) -> dict[str, Sign]:
        """Posterior collapse (Bowman et al. 2016, arXiv 1511.06349): q(z|x) is the prior whatever the image."""
        text = f"the latent says nothing of the image (KL {scalars['vae/kl']:.2g} nats)"
        return {"silent": Sign(text, 4 * PATIENCE_STEPS)} if scalars["vae/kl"] < SILENT else {}
