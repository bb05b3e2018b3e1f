"""Distributions q of binary images: what is drawn from them as noise, and how likely they find an image."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from pipeline import keyed
from pipeline.nets.energies import RAREST
from pipeline.objectives.base import Batch
from pipeline.objectives.variational import Variational, bound, draw, log_ratio


class Proposal(nn.Module, ABC):
    """What `NCE` draws its noise from."""

    @abstractmethod
    def first(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """So many states [count, D] and log q of each, a function of the seed."""

    @abstractmethod
    def samples(self, batch: Batch, count: int) -> Tensor:
        """So many states for each image of a batch, in [B, count, D]."""

    @abstractmethod
    def log_density(self, x: Tensor, batch: Batch) -> Tensor:
        """log q of the batch's states [B, D], or of n for each of its images [B, n, D] -> [B] or [B, n]."""


class IndependentPixels(Proposal):
    """Pixels that are ones with these chances [D], each by itself."""

    means: Tensor

    def __init__(self, means: Tensor):
        super().__init__()
        self.register_buffer("means", means.clamp(RAREST, 1 - RAREST))

    def first(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        numbers = torch.as_tensor(keyed.uniform(count * len(self.means), seed, "log partition"))
        states = (numbers.view(count, -1) < self.means).to(self.means.dtype)
        return states, self.density(states)

    def samples(self, batch: Batch, count: int) -> Tensor:
        numbers = batch.uniform("noise", count, len(self.means))
        return (numbers < self.means).to(batch.dtype)

    def log_density(self, x: Tensor, batch: Batch) -> Tensor:
        return self.density(x)

    def density(self, x: Tensor) -> Tensor:
        """log q of states [..., D] -> [...]."""
        return x @ self.means.logit() + torch.log1p(-self.means).sum()


class Generated(Proposal):
    """What a variational autoencoder of binary pixels draws. Its log q(x) is estimated by importance sampling, log 1/K
    sum_k p(x|z_k) p(z_k) / q(z_k|x) over K draws of its encoder: too low in the mean, the less so the more there are.
    """

    def __init__(self, model: Variational, samples: int, shape: tuple[int, int, int]):
        super().__init__()
        self.model, self.count, self.shape = model.requires_grad_(False), samples, shape

    def train(self, mode: bool = True) -> "Generated":
        """Its norms keep the statistics of its own training."""
        return super().train(False)

    def first(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        batch = Batch((), torch.arange(count), seed=seed)
        states = self.samples(batch, 1)[:, 0]
        return states, self.log_density(states, batch)

    @torch.no_grad()
    def samples(self, batch: Batch, count: int) -> Tensor:
        z = batch.normal("noise code", count, self.model.latent)
        chances = self.model.decode(z.flatten(0, 1)).flatten(1).view(len(z), count, -1)
        return (batch.uniform("noise", *chances.shape[1:]) < chances).to(chances.dtype)

    @torch.no_grad()
    def log_density(self, x: Tensor, batch: Batch) -> Tensor:
        each = x.view(len(x), -1, x.shape[-1])
        epsilon = batch.normal("density", each.shape[1], self.count, self.model.latent).flatten(0, 1)
        images = each.reshape(-1, *self.shape)
        mean, logvar = self.model.encode(images)
        z = draw(mean, logvar, epsilon)
        log_weights = log_ratio(z, mean, logvar) - self.model.negative_log_likelihood(images, z)
        return -bound(log_weights).view(x.shape[:-1])
