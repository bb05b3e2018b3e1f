"""What joint embeddings share whose volume of low energy is limited by a statistic of the batch, not by negatives."""

from typing import Any

import torch
from torch import Tensor

from pipeline.objectives.base import PATIENCE_STEPS, Batch, Setup, Sign, Step
from pipeline.objectives.energies import full, unit
from pipeline.objectives.joint_embeddings import JointEmbedding, shown
from pipeline.tags import UNLIMITED


class Regularised(JointEmbedding):
    """An objective whose ``low`` is a distance of an image's embeddings, and whose loss adds a statistic of all of the
    batch's. Its `score` gives the scalar collapse/unlimited: 0 where the volume of low energy is limited as it should
    be, 1 where it is not at all."""

    coupled = True
    remedy = "raise the weight of what limits the volume, or lower the learning rate"

    def __init__(self, settings: Any, setup: Setup):
        super().__init__(settings, setup)
        self.dim = settings.head.dim
        self.head, _ = self.build_heads(setup)

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """-> the embeddings of both views [B, 2, dim], each view through batch norm by itself, as the authors' code
        has it."""
        return (torch.stack([full(self.head(self.trunk(view))) for view in batch.views], 1),)

    def pair(self, embedded: tuple[Tensor, ...]) -> Tensor:
        return unit(super().pair(embedded))

    def step(self, rows: Tensor, loss: Tensor, low: Tensor, volume: Tensor, scalars: dict[str, Tensor]) -> Step:
        """Of embeddings [B, A, dim] whose first two are the views': ``low`` [B], and what of the loss limits the
        volume."""
        scalars = {name: x.detach() for name, x in (scalars | {"energy/volume": volume}).items()}
        high = low.new_empty(len(low), 0)
        return Step(loss, low, high, scalars, per_sample={"pair": self.pair((rows,)).detach()})

    def collapse_signs(self, scalars: dict[str, float]) -> dict[str, Sign]:
        """Those of the pairs. unlimited: what limits the volume is violated nearly as much as it can be."""
        share = scalars["collapse/unlimited"]
        text = f"nothing limits the volume of low energy ({share:.0%} of what no limit at all would give)"
        return super().collapse_signs(scalars) | shown({"unlimited": (share > UNLIMITED, PATIENCE_STEPS, text)})


def covariances(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Of rows [n, d] of which each column has the mean 0: the sums x^T y, as its diagonal [d] and the rest [d, d] with
    zeros there."""
    products = x.T @ y
    diagonal = products.diagonal()
    return diagonal, products - torch.diag(diagonal)
