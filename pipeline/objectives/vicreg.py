"""VICReg (Bardes, Ponce & LeCun 2022, arXiv 2105.04906): variance, invariance and covariance, each a term."""

import torch
from torch import Tensor

from pipeline.objectives.base import Batch, Step
from pipeline.objectives.energies import full_precision
from pipeline.objectives.regularised import Regularised, covariances
from pipeline.settings.joint_embeddings import VICReg as Settings

FLOOR = 1e-4
"""Added to variances before the root is taken (algorithm 1)."""


class VICReg(Regularised):
    """Algorithm 1: L = lambda s(Z, Z') + mu (v(Z) + v(Z')) + nu (c(Z) + c(Z')).

    s: mean squared difference of the two embeddings of an image, over images and dimensions, the energy; v: mean over
    dimensions of max(0, 1 - sqrt(Var + 1e-4)); c: sum of the squared covariances of different dimensions, over the
    number of dimensions. Variances and covariances are unbiased, and of the global batch. The authors' code halves v.
    """

    Settings = Settings

    def score(self, embedded: tuple[Tensor, ...], batch: Batch) -> Step:
        (rows,), settings = embedded, self.settings
        with full_precision(rows):
            low = (rows[:, 0] - rows[:, 1]).square().mean(1)
            terms = [statistics(view) for view in self.world.gather(rows).unbind(1)]
            variance, covariance = (torch.stack(each).sum() for each in zip(*terms, strict=True))
            volume = settings.variance * variance + settings.covariance * covariance
            # Both terms of both views are 1 where a dimension has no deviation, or says no more than the others.
            redundant = covariance / max(1, self.dim - 1)
            scalars = {
                "learn/variance_loss": variance,
                "learn/covariance_loss": covariance,
                "collapse/unlimited": torch.maximum(variance, redundant) / 2,
            }
            return self.step(rows, settings.invariance * low.mean() + volume, low, volume, scalars)


def statistics(z: Tensor) -> tuple[Tensor, Tensor]:
    """v and c of embeddings [n, d], 0-d each."""
    n, d = z.shape
    centred = z - z.mean(0)
    variances, others = covariances(centred, centred)
    deviations = (variances / (n - 1) + FLOOR).sqrt()
    return (1 - deviations).clamp(min=0).mean(), (others / (n - 1)).square().sum() / d
