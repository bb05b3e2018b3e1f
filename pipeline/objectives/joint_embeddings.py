"""What joint embeddings share: a trunk, the two embeddings of an image, and what is watched of them."""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pipeline.nets import heads, norm, seeded, trunks
from pipeline.objectives.base import PATIENCE_STEPS, Batch, Objective, Setup, Sign, Step
from pipeline.objectives.energies import directions, unit
from pipeline.tags import FAR, LEAKAGE, NARROW, POINT

PAIRS = 256
"""Images between which all distances are taken: these grow with the square."""


class JointEmbedding(Objective):
    """An objective that pulls the two embeddings of an image together and keeps those of all images from being one.

    Its `score` gives ``per_sample["pair"]``, the unit rows of an image's two embeddings [B, 2, dim], of which
    alignment, spread and directions are taken for all of them alike.
    """

    dim: int
    """Of the embeddings."""
    head: nn.Module
    """From the trunk's features to the embeddings of whole images; where a predictor follows, to what it takes."""
    leaks: ClassVar[bool] = True
    """Whether both embeddings are of whole images, whose companions in batch norm may tell them apart."""

    def __init__(self, settings: Any, setup: Setup):
        super().__init__()
        self.settings, self.world = settings, setup.world
        self.trunk = trunks.build(setup.net, setup.image, setup.world, setup.seed)

    def build_heads(self, setup: Setup) -> tuple[nn.Module, nn.Module]:
        """What leads from the trunk's features to the embeddings, and from these to predictions: the identity where
        the settings have no predictor."""
        parts, norms = self.settings, setup.net.norm
        with seeded(setup.seed, "init", "head"):
            head = heads.build(parts.head, self.trunk.features, norms, setup.world)
            if getattr(parts, "predictor", None) is None:
                return head, nn.Identity()
            return head, heads.build(parts.predictor, parts.head.dim, norms, setup.world)

    def diagnostics(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        """`pair_statistics` over the global batch; every PATIENCE_STEPS steps the leakage of batch norm."""
        # Spread is a property of the batch, not of a rank's share.
        scalars = pair_statistics(self.world.gather(step.per_sample["pair"]))
        if self.leaks and (batch.step + 1) % PATIENCE_STEPS == 0 and norm.blocks(self) > 1:
            scalars["collapse/batchnorm_leakage"] = self.batchnorm_leakage(batch)
        return scalars

    def pair(self, embedded: tuple[Tensor, ...]) -> Tensor:
        """Of `embed`'s rows, the two embeddings of each image [B, 2, dim]; small crops come after them."""
        return embedded[0][:, :2]

    @torch.no_grad()
    def batchnorm_leakage(self, batch: Batch) -> Tensor:
        """How much nearer, in cosine, an image's views are for having been normalised beside the same companions, 0-d:
        the second view is embedded again with its batch's halves interleaved. 0 but for noise unless batch norm tells
        an image by its companions (arXiv 1911.05722, sec. 3.3)."""
        first, second, *rest = batch.views
        n = len(batch.ids)
        order = torch.cat([torch.arange(0, n, 2), torch.arange(1, n, 2)]).argsort().to(second.device)
        with norm.untracked(self):
            pair = self.pair(self.embed(batch))
            mixed = self.pair(self.embed(replace(batch, views=(first, second[order], *rest))))
        near, far = (pair[:, 0] * pair[:, 1]).sum(1), (pair[:, 0] * mixed[order.argsort(), 1]).sum(1)
        return (near - far).mean()

    def collapse_signs(self, scalars: dict[str, float]) -> dict[str, Sign]:
        """point: the embeddings' deviation is under POINT of that of a sphere. narrow: they fill fewer directions than
        NARROW. far: an image's embeddings are nearly as far as two images' (FAR). leakage: a positive is nearer by
        LEAKAGE for its companions in batch norm. A healthy training may be narrow or far in its first epochs: these
        have to stay longer."""
        std, count, spread = scalars["collapse/std"], scalars["collapse/directions"], self.dim**-0.5
        ratio, leakage = scalars["collapse/alignment_ratio"], scalars.get("collapse/batchnorm_leakage", 0.0)
        return shown({
            "point": (std < POINT * spread, PATIENCE_STEPS,
                      f"the embeddings are nearly one point (std {std:.2g}, spread {spread:.2g})"),
            "narrow": (count < NARROW and self.dim > 1, 4 * PATIENCE_STEPS,
                       f"the embeddings fill {count:.2g} directions of {self.dim}"),
            "far": (ratio > FAR, 4 * PATIENCE_STEPS,
                    f"positives are as far as other images (squared distances, {ratio:.2g} to 1)"),
            "leakage": (leakage > LEAKAGE, 0,
                        f"batch norm tells an image's views by their companions (leakage {leakage:.2g})"),
        })  # fmt: skip

    @property
    def encoder(self) -> nn.Module:
        return self.trunk

    @property
    def projection(self) -> nn.Module:
        return self.head


def shown(every: dict[str, tuple[bool, int, str]]) -> dict[str, Sign]:
    """Of all signs, (whether it is there, its patience in steps, its text) by name, those that are there."""
    return {name: Sign(text, steps) for name, (there, steps, text) in every.items() if there}


def embed_crops(trunk: nn.Module, head: nn.Module, crops: Tensor) -> Tensor:
    """Unit rows [B, P, dim] of small crops [B, P, C, S, S]."""
    return unit(head(trunks.embed_patches(trunk, crops).flatten(0, 1))).unflatten(0, crops.shape[:2])


@torch.no_grad()
def pair_statistics(pair: Tensor) -> dict[str, Tensor]:
    """Scalars of the unit rows of positive pairs, [B, 2, d].

    alignment: mean squared distance between the two of an image; alignment_ratio: that over the mean squared distance
    between two images, 1 where a positive is as far as any; uniformity: log of the mean of e^(-2 squared distance)
    over pairs of images (Wang & Isola, arXiv 2005.10242); std: mean deviation over dimensions, 1/sqrt(d) if spread
    over the sphere, 0 if collapsed; directions: how many the rows fill, (tr C)^2 / tr C^2 of their covariance.
    """
    rows, positives = pair.unbind(1)
    n, some = len(rows), rows[:PAIRS]
    distances = 2 - 2 * some @ some.T
    distances.fill_diagonal_(torch.inf)
    count = max(1, len(some) * (len(some) - 1))
    alignment = (rows - positives).square().sum(1).mean()
    # All pairs at once, by means and variances about them: nothing cancels where rows are nearly one point.
    means = pair.mean(0)
    every = (pair - means).square().sum(2).mean(0).sum() + (means[0] - means[1]).square().sum()
    others = (n * every - alignment) / max(1, n - 1)
    return {
        "collapse/alignment": alignment,
        "collapse/alignment_ratio": alignment / others.clamp(min=torch.finfo(rows.dtype).tiny),
        "collapse/uniformity": (-2 * distances).flatten().logsumexp(0) - torch.log(distances.new_tensor(count)),
        "collapse/std": rows.std(0, correction=0).mean(),
        "collapse/directions": directions(rows),
    }
