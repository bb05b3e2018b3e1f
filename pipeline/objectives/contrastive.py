"""What contrastive objectives share: energies of positives and of negatives, and what is watched of them."""

import torch
from torch import Tensor

from pipeline.objectives.base import PATIENCE_STEPS, Batch, Sign, Step
from pipeline.objectives.energies import infonce
from pipeline.objectives.joint_embeddings import JointEmbedding, shown
from pipeline.tags import FAR, FLAT


class Contrastive(JointEmbedding):
    """An objective that pushes others' embeddings away from an image's two: ``low`` and ``high`` are cosines over
    -T."""

    remedy = "lower the temperature or the learning rate, or set net.norm.kind shuffle"

    def diagnostics(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        """Those of the pairs, and `ranking`."""
        return super().diagnostics(step, batch) | ranking(step.low.detach(), step.high.detach(), self.dim)

    def collapse_signs(self, scalars: dict[str, float]) -> dict[str, Sign]:
        """Those of the pairs. flat: positives lie less than FLAT nats under negatives, so that no sample is told from
        another (a temperature without end). batches: most positives are the nearest of all keys though as far as other
        images of their own batch, so that it is the batch which is known, by its batch norm's statistics, which keys
        of earlier batches have not."""
        ratio, gap = scalars["collapse/alignment_ratio"], scalars.get("energy/gap", 1.0)
        accuracy = scalars.get("learn/accuracy", 0.0)
        return super().collapse_signs(scalars) | shown({
            "flat": (gap < FLAT, PATIENCE_STEPS, f"negatives are not pushed above positives (gap {gap:.2g} nats)"),
            "batches": (accuracy > 0.5 and ratio > FAR, PATIENCE_STEPS,
                        f"batch norm tells batches, not images (accuracy {accuracy:.2g}, but positives as far as "
                        f"others of their batch, {ratio:.2g} to 1): set net.norm.kind shuffle, with splits 8"),
        })  # fmt: skip


def false_negatives(ids: Tensor, columns: Tensor) -> Tensor:
    """Which columns are of the row's own sample: ids [R], columns [K] -> bool [R, K]."""
    return ids[:, None] == columns


@torch.no_grad()
def ranking(low: Tensor, high: Tensor, dim: int) -> dict[str, Tensor]:
    """Scalars of the energies low [R] and high [R, K] of cosines between rows of ``dim`` numbers; empty where K is 0.

    accuracy: positives ranked first; auroc: mean over rows of the share of a row's negatives above its positive.
    Energies that rounding alone parts are ties, and ties are chance: half a negative in auroc, one of so many that
    share the first place in accuracy (a collapsed encoder: 1/2 and 1 / (1 + K)). positive_share: of the positive in
    the softmax; effective_negatives: 1 / sum of the squared shares of the negatives, K where all weigh the same.
    """
    if not high.numel():
        return {}
    real = torch.isfinite(high)
    # A cosine is a sum of d products: its rounding is at most about d eps, of an energy in proportion.
    margin = dim * torch.finfo(low.dtype).eps * low.abs()[:, None]
    above, below = high - low[:, None] > margin, high - low[:, None] < -margin
    ties, count = (~above & ~below).sum(1), real.sum(1)
    won = (above & real).sum(1).to(low.dtype) + 0.5 * ties.to(low.dtype)
    share = high.neg().softmax(1).nan_to_num()  # a row may have none
    return {
        "learn/accuracy": (~below.any(1) / (1 + ties)).to(low.dtype).mean(),
        "learn/auroc": torch.where(count > 0, won / count.clamp(min=1), 0.5).mean(),
        "learn/positive_share": (-infonce(low, high)).exp().mean(),
        "learn/effective_negatives": (1 / share.square().sum(1).clamp(min=1e-30)).mul(real.any(1)).mean(),
    }
