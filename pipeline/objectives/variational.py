"""Variational autoencoders: latent variables whose noise limits what they know of an image.

The energy of an image is a bound on - log p(x), p(x) = E p(x|z) over the prior N(0, 1) of z, with draws of q(z|x), a
normal distribution whose mean and variance the encoder gives. The weight of a draw is w = p(x|z) p(z) / q(z|x).
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import keyed, sheets
from pipeline.objectives import pixels
from pipeline.objectives.autoencoders import AE
from pipeline.objectives.base import PATIENCE_STEPS, Batch, Setup, Sign, Step
from pipeline.objectives.densities import binarise
from pipeline.objectives.energies import full
from pipeline.objectives.latents import ellipses, plane
from pipeline.settings import objectives as kinds
from pipeline.sheets import Picture

SILENT = 0.05  # nats of KL, over all units
GRID, DRAWN = 16, 64  # images on a side of a latent plane; samples of the prior
ACTIVE = 0.01  # variance of a unit's mean over images


class Variational(AE):
    """What all of them share: the encoder's distribution, the pixels', and what is measured of both."""

    settings: Any

    def __init__(self, settings: Any, setup: Setup):
        self.parts = 1 if settings.variance == "one" else 2
        super().__init__(settings, setup)
        self.pixels: pixels.Pixels = pixels.KINDS[settings.likelihood]()

    def target(self, batch: Batch) -> Tensor:
        """The batch's images [B, C, H, W] as they are modelled: grey, or as binary states; a pixel that is no number
        stays one."""
        images = batch.views[0]
        if self.settings.binarisation == "none":
            return images
        return binarise(batch, self.settings.binarisation).view_as(images).to(images.dtype) + 0 * images

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images in [0, 1], [B, C, H, W] -> mean and log variance of q(z|x), [B, latent] each, at least fp32."""
        outputs = full(self.mean.outputs(images))
        if self.settings.variance == "one":
            return outputs, torch.zeros_like(outputs)
        mean, logvar = outputs.chunk(2, 1)
        return mean, logvar

    def decode(self, z: Tensor) -> Tensor:
        """Latent [B, latent] -> mean of p(x|z), [B, C, H, W]."""
        return self.pixels.mean(self.decoder(z))

    def negative_log_likelihood(self, images: Tensor, z: Tensor) -> Tensor:
        """- log p(x|z) of images [B, C, H, W] and K draws each of the latent [B, K, latent], summed over pixels
        -> [B, K], at least fp32."""
        outputs = self.decoder(z.flatten(0, 1)).unflatten(0, z.shape[:2])
        return -self.pixels.log_density(images[:, None], outputs).flatten(2).sum(2)

    def beta(self, progress: float) -> float:
        """The weight of the KL divergence at a share of training."""
        rising = min(1.0, progress / self.settings.warmup) if self.settings.warmup else 1.0
        return self.settings.beta * rising

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

    def measured(self, mean: Tensor, logvar: Tensor, z: Tensor) -> dict[str, Tensor]:
        """What `diagnostics` reads of q(z|x) and a draw of it."""
        return {"means": mean.detach(), "logvars": logvar.detach(), "draws": z.detach()}

    def diagnostics(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        """Of the global batch: units in use, and the KL divergence in two parts."""
        means, logvars, draws = (self.world.gather(step.per_sample[name]) for name in ("means", "logvars", "draws"))
        information, aggregate = divergence_parts(means, logvars, draws)
        return {
            "vae/active_units": active(means).to(means.dtype).sum(),
            "vae/means_rms": means.square().mean().sqrt(),
            "vae/information": information,
            "vae/aggregate_kl": aggregate,
        }

    def collapse_signs(self, scalars: dict[str, float]) -> dict[str, Sign]:
        """Posterior collapse (Bowman et al. 2016, arXiv 1511.06349): q(z|x) is the prior whatever the image."""
        text = f"the latent says nothing of the image (KL {scalars['vae/kl']:.2g} nats)"
        return {"silent": Sign(text, 4 * PATIENCE_STEPS)} if scalars["vae/kl"] < SILENT else {}


class VAE(Variational):
    """Variational autoencoder (Kingma & Welling 2014, arXiv 1312.6114, eq. 3): E = - ELBO = - log p(x|z) + KL.

    Summed over pixels and units, mean over the batch; KL_j = (V - log V - 1 + mu^2) / 2 (eq. 10). beta may rise during
    training (``warmup``) and units below ``free_bits``, in the mean over the global batch, are not pressed (Kingma et
    al. 2016, arXiv 1606.04934, eq. 15); the energies in ``low`` have beta 1 and all of the KL.
    """

    Settings = kinds.VAE

    def __init__(self, settings: kinds.VAE, setup: Setup):
        super().__init__(settings, setup)
        self.coupled = settings.free_bits > 0  # they look at the mean over the batch

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """-> - log p(x|z) [B], and of q(z|x) mean, log variance and the draw [B, latent]."""
        images = self.target(batch)
        mean, logvar = self.encode(images)
        z = mean + torch.exp(0.5 * logvar) * batch.normal("epsilon", self.latent)
        return self.negative_log_likelihood(images, z[:, None])[:, 0], mean, logvar, z

    def score(self, embedded: tuple[Tensor, ...], batch: Batch) -> Step:
        recon, mean, logvar, z = embedded
        kl = divergence(mean, logvar)
        low = recon + kl.sum(1)
        pressed = kl.mean(0)
        if self.settings.free_bits:
            pressed = (self.world.sum(pressed) / self.world.size).clamp(min=self.settings.free_bits)
        scalars = {
            "vae/elbo": -low.detach().mean(),
            "vae/recon": recon.detach().mean(),
            "vae/kl": kl.detach().sum(1).mean(),
            "energy/volume": kl.detach().sum(1).mean(),
        }
        loss = recon.mean() + self.beta(batch.progress) * pressed.sum()
        return Step(loss, low, low.new_empty(len(low), 0), scalars, per_sample=self.measured(mean, logvar, z))


class IWAE(Variational):
    """Importance-weighted autoencoder (Burda, Grosse & Salakhutdinov 2016, arXiv 1509.00519, eq. 8):
    E = - log 1/K sum_k w_k over K draws of q(z|x), a bound that is tighter the more there are; K = 1 is the ELBO.

    beta, where it is not 1, is the exponent of p(z) / q(z|x) in the weights of the loss; ``low`` has all of it. With
    gradient "doubly_reparameterised" (Tucker et al. 2019, arXiv 1810.04152, eq. 8) the encoder's gradient is
    sum_k v_k^2 dlog w_k/dz_k dz_k, v_k the share of w_k, whose signal does not drown in noise as K grows.
    """

    Settings = kinds.IWAE

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """-> - log p(x|z_k) and log p(z_k) - log q(z_k|x), [B, K] each; mean, log variance, a draw [B, latent]."""
        images = self.target(batch)
        mean, logvar = self.encode(images)
        z = draw(mean, logvar, batch.normal("epsilon", self.draws(batch.progress), self.latent))
        doubly = self.settings.gradient == "doubly_reparameterised"
        density = [x.detach() for x in (mean, logvar)] if doubly else (mean, logvar)
        recon, ratio = self.negative_log_likelihood(images, z), log_ratio(z, *density)
        if doubly and z.requires_grad:
            share = (ratio - recon).detach().softmax(1)[..., None]
            z.register_hook(lambda gradient: share * gradient)
        return recon, ratio, mean, logvar, z[:, 0]

    def draws(self, progress: float) -> int:
        """K at a share of training."""
        return 1 if progress < self.settings.single else self.settings.samples

    def score(self, embedded: tuple[Tensor, ...], batch: Batch) -> Step:
        recon, ratio, mean, logvar, z = embedded
        low = bound(ratio - recon)
        loss = bound(self.beta(batch.progress) * ratio - recon).mean()
        kl = divergence(mean, logvar).detach().sum(1).mean()
        scalars = {
            "vae/elbo": (ratio - recon).detach().mean(),
            "vae/iwae": -low.detach().mean(),
            "vae/recon": recon.detach().mean(),
            "vae/kl": kl,
            "energy/volume": kl,
        }
        return Step(loss, low, low.new_empty(len(low), 0), scalars, per_sample=self.measured(mean, logvar, z))


def draw(mean: Tensor, logvar: Tensor, epsilon: Tensor) -> Tensor:
    """K draws of each q(z|x) by standard normal numbers [B, K, latent]; mean and log variance [B, latent]."""
    return mean[:, None] + torch.exp(0.5 * logvar)[:, None] * epsilon


def log_ratio(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """log p(z) - log q(z|x) of draws [B, K, latent]; mean and log variance [B, latent] -> [B, K]."""
    error = (z - mean[:, None]) * torch.exp(-0.5 * logvar)[:, None]
    return 0.5 * (error.square() - z.square() + logvar[:, None]).sum(2)


def bound(log_weights: Tensor) -> Tensor:
    """- log 1/K sum_k w_k of log weights [B, K] -> [B]."""
    return math.log(log_weights.shape[1]) - log_weights.logsumexp(1)


def divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL of q(z|x) from the prior, unit by unit: [B, latent]."""
    return 0.5 * (logvar.exp() - logvar - 1 + mean.square())


def active(means: Tensor) -> Tensor:
    """The units whose mean varies with the image by more than 0.01 (Burda et al. 2016, sec. 5.2): bool [latent]."""
    return means.var(0, correction=0) > ACTIVE


@torch.no_grad()
def divergence_parts(means: Tensor, logvars: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """The mean KL divergence of q(z|x) from the prior over N images in two parts (Hoffman & Johnson 2016): how much a
    draw tells which of the images it is of, at most log N, and the divergence of their mixture q(z) from the prior.
    From a draw for each image [N, latent]."""
    precision = torch.exp(-logvars)
    constant = (means.square() * precision + logvars).sum(1)
    distances = draws.square() @ precision.T - 2 * draws @ (means * precision).T + constant
    log_density = -0.5 * (distances + means.shape[1] * math.log(2 * math.pi))  # [N draws, N images]
    mixture = log_density.logsumexp(1) - math.log(len(means))
    prior = -0.5 * (draws.square() + math.log(2 * math.pi)).sum(1)
    return (log_density.diagonal() - mixture).mean(), (mixture - prior).mean()
