"""How likely a variational autoencoder finds images, in nats an image: by importance sampling, or exactly where its
decoder is linear and its pixels are normal.

p(x) = E p(x|z) p(z) / q(z|x) over draws of q(z|x): the log of a mean of such weights is too low in the mean, the less
so the more draws there are, and the better q fits p(z|x).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import keyed
from pipeline.objectives import variational
from pipeline.objectives.pixels import Gaussian
from pipeline.objectives.variational import Variational
from pipeline.samplers import langevin

IMAGES = {"cpu": 64, "cuda": 512}
"""Images that are looked at together, by device, with as many draws of each at a time."""
FEW = 10
"""Effective draws of an image under which its estimate is not to be relied on."""


class Weights(NamedTuple):
    """Of each image: the log of the mean weight, the mean log weight (a bound), and the effective number of draws,
    float64 [N] each."""

    log_likelihood: Tensor
    elbo: Tensor
    effective: Tensor


@torch.no_grad()
def evaluate(
    objective: Variational, images: Tensor, ids: np.ndarray, samples: int, seed: int,
    halt: Callable[[], None] = lambda: None,
) -> dict[str, Any]:  # fmt: skip
    """The mean log-likelihood of images [N, C, H, W] as they are modelled, with its standard error over images and its
    protocol; and what their latents hold. ``ids``: what the draws of an image are keyed by, int64 [N]. ``halt`` may
    end it between images, by an error."""
    found = latents(objective, images, ids, seed)
    if objective.settings.no_likelihood:
        return found
    values, how = exact(objective, images), "exact"
    if values is None:
        weights, how = estimate(objective, images, ids, samples, seed, halt), f"importance sampling, {samples} draws"
        values = weights.log_likelihood
        found |= {"elbo": float(weights.elbo.mean()), "unsure": float((weights.effective < FEW).double().mean())}
    protocol = {"likelihood": objective.settings.likelihood, "binarisation": objective.settings.binarisation}
    return found | {
        "log_likelihood": float(values.mean()),
        "images_se": float(values.std()) / math.sqrt(len(values)),
        "protocol": protocol | {"images": len(images), "by": how},
    }


def latents(objective: Variational, images: Tensor, ids: np.ndarray, seed: int) -> dict[str, float]:
    """What the latents of images hold: their KL divergence from the prior, its two parts, and units in use."""
    mean, logvar = encode(objective, images)
    epsilon = langevin.normal(keyed.key(seed, "aggregate", ids), mean)
    information, aggregate = variational.divergence_parts(mean, logvar, mean + torch.exp(0.5 * logvar) * epsilon)
    return {
        "kl": float(variational.divergence(mean, logvar).sum(1).mean()),
        "information": float(information),
        "aggregate_kl": float(aggregate),
        "active_units": float(variational.active(mean).sum()),
    }


def encode(objective: Variational, images: Tensor) -> tuple[Tensor, Tensor]:
    """Means and log variances of many images, [N, latent] each."""
    mean, logvar = zip(*map(objective.encode, images.split(1024)), strict=True)
    return torch.cat(mean), torch.cat(logvar)


def divergences(objective: Variational, images: Tensor) -> Tensor:
    """The mean KL divergence of each unit over images: [latent]."""
    return variational.divergence(*encode(objective, images)).mean(0)


@torch.no_grad()
def estimate(
    objective: Variational, images: Tensor, ids: np.ndarray, samples: int, seed: int,
    halt: Callable[[], None] = lambda: None,
) -> Weights:  # fmt: skip
    """`Weights` from so many draws for each image, which depend on (seed, id, draw) alone. Each image is encoded once;
    several images' draws are decoded together."""
    block = IMAGES[images.device.type]
    blocks = zip(images.split(block), np.split(ids, range(block, len(ids), block)), strict=True)
    parts = []
    for some, numbers in blocks:
        halt()
        parts.append(of_weights(log_weights(objective, some, numbers, samples, seed)))
    return Weights(*(torch.cat(column) for column in zip(*parts, strict=True)))


def log_weights(objective: Variational, images: Tensor, ids: np.ndarray, samples: int, seed: int) -> Tensor:
    """log p(x|z) p(z) / q(z|x) of so many draws of each image -> float64 [N, samples]."""
    mean, logvar = objective.encode(images)
    parts, block = [], IMAGES[images.device.type]
    for first in range(0, samples, block):
        draws = np.arange(first, min(samples, first + block))
        keys = keyed.key(seed, "importance", ids[:, None], draws)
        epsilon = langevin.normal(keys.ravel(), mean.new_empty(keys.size, objective.latent))
        z = variational.draw(mean, logvar, epsilon.view(*keys.shape, -1))
        log_ratio = variational.log_ratio(z, mean, logvar)
        parts.append(log_ratio.double() - objective.negative_log_likelihood(images, z))
    return torch.cat(parts, 1)


def of_weights(log_weights: Tensor) -> Weights:
    """What log weights [N, samples] say of each image; effective draws (sum w)^2 / sum w^2 (Kong 1992)."""
    effective = 1 / log_weights.softmax(1).square().sum(1)
    return Weights(-variational.bound(log_weights), log_weights.mean(1), effective)


def exact(objective: Variational, images: Tensor) -> Tensor | None:
    """log N(x; b, W W' + sigma^2 I) of images [N, C, H, W], which a linear decoder W z + b of normal pixels stands for
    (Tipping & Bishop 1999, eq. 3), float64 [N]; None for another."""
    linear, *rest = objective.decoder
    if not isinstance(objective.pixels, Gaussian) or not isinstance(linear, nn.Linear) or len(rest) > 1:
        return None
    variance = objective.pixels.log_deviation().double().mul(2).exp().expand(linear.out_features)
    weight, bias = linear.weight.double(), linear.bias.double()
    normal = torch.distributions.LowRankMultivariateNormal(bias, weight, variance)
    return normal.log_prob(images.flatten(1).double())
