"""LeJEPA (Balestriero & LeCun 2025, arXiv 2511.08544): SIGReg holds embeddings to a normal distribution."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from pipeline import keyed
from pipeline.nets import trunks
from pipeline.objectives.base import Batch, Step
from pipeline.objectives.energies import full, full_precision
from pipeline.objectives.regularised import Regularised
from pipeline.samplers import langevin
from pipeline.settings.joint_embeddings import LeJEPA as Settings

POINT = math.sqrt(2 * math.pi) * (1 - math.sqrt(2) + math.sqrt(1 / 3))
"""Of the Epps-Pulley statistic of one point at 0, over the number of samples: the integral over all t of
(1 - e^(-t^2 / 2))^2 e^(-t^2 / 2)."""


class LeJEPA(Regularised):
    """Algorithm 2: L = (1 - lambda) s + lambda mean_v SIGReg(z_v).

    s is the mean squared difference of each view's embedding from the mean of the image's whole views, the energy.
    SIGReg (algorithm 1) is the mean over random directions a of unit length of the Epps-Pulley statistic

        T(a) = n integral |mean_b e^(i t a z_b) - e^(-t^2 / 2)|^2 e^(-t^2 / 2) dt

    over the n images of the global batch, by the trapezoidal rule; directions are others in each step, the same for
    all views and ranks. Small crops are more views.
    """

    Settings = Settings

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """-> the embeddings of V whole views, which go through batch norm together, [B, V, dim], and of P small crops
        where there are any, [B, P, dim]."""
        whole = [view for view in batch.views if view.ndim == 4]
        views = (torch.stack(whole, 1), *batch.views[len(whole) :])
        features = [trunks.embed_patches(self.trunk, each) for each in views]
        return tuple(full(self.head(x.flatten(0, 1))).unflatten(0, x.shape[:2]) for x in features)

    def score(self, embedded: tuple[Tensor, ...], batch: Batch) -> Step:
        rows, weight = torch.cat(embedded, 1), self.settings.weight
        with full_precision(rows):
            low = (rows - embedded[0].mean(1, keepdim=True)).square().mean((1, 2))
            statistic, count = self.sigreg(rows, batch), len(rows) * self.world.size
            volume = weight * statistic
            scalars = {"learn/sigreg": statistic, "collapse/unlimited": statistic / (POINT * count)}
            return self.step(rows, (1 - weight) * low.mean() + volume, low, volume, scalars)

    def sigreg(self, rows: Tensor, batch: Batch) -> Tensor:
        """The mean of T over directions and views of embeddings [B, A, dim], 0-d."""
        projections = rows @ self.directions(rows, batch).T
        t, weights = self.quadrature(rows)
        angles = projections[..., None] * t  # [B, A, slices, points]
        parts = torch.stack([angles.cos().mean(0), angles.sin().mean(0)])
        real, imaginary = self.world.sum(parts).div(self.world.size).unbind()
        distance = (real - (-t.square() / 2).exp()).square() + imaginary.square()
        return (distance @ weights).mean() * len(rows) * self.world.size

    def directions(self, rows: Tensor, batch: Batch) -> Tensor:
        """The step's random directions, [slices, dim] of unit length: a function of seed and step alone."""
        keys = keyed.key(batch.seed, batch.step, "sigreg", np.arange(self.settings.slices))
        return normalize(langevin.normal(keys, rows.new_empty(len(keys), self.dim)), dim=1)

    def quadrature(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The points t >= 0, and their weights in the integral of f(t) e^(-t^2 / 2) over all t, f being even."""
        bound, count = self.settings.bound, self.settings.points // 2 + 1
        t = torch.linspace(0, bound, count, dtype=like.dtype, device=like.device)
        weights = torch.full_like(t, 2 * bound / (count - 1))
        weights[0] = weights[-1] = bound / (count - 1)
        return t, weights * (-t.square() / 2).exp()
