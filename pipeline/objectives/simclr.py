"""SimCLR (Chen et al. 2020, arXiv 2002.05709): both views of the whole batch against each other."""

import torch
from torch import Tensor

from pipeline.objectives.base import Batch, Setup, Step
from pipeline.objectives.contrastive import Contrastive, false_negatives
from pipeline.objectives.energies import full_precision, infonce
from pipeline.objectives.joint_embeddings import embed_crops
from pipeline.settings.objectives import SimCLR as Settings


class SimCLR(Contrastive):
    """NT-Xent, eq. 1: l(i, j) = - log e^(s_ij/T) / sum_{k != i} e^(s_ik/T) over the 2B views of the global batch.

    Small crops are more queries i, each for both views j of its image against the views of all others; they are no
    one's negatives. The loss is the mean over all pairs of a query and a view that it asks for.
    """

    Settings = Settings
    coupled = True

    def __init__(self, settings: Settings, setup: Setup):
        super().__init__(settings, setup)
        self.dim = settings.head.dim
        self.head, _ = self.build_heads(setup)

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """-> unit rows of both views and of P small crops [B, 2 + P, dim]."""
        first, second, *small = batch.views
        # Sample by sample, both views in one pass: batch norm sees both, and blocks of samples stay blocks.
        rows = embed_crops(self.trunk, self.head, torch.stack([first, second], 1))
        return (torch.cat([rows, *(embed_crops(self.trunk, self.head, crops) for crops in small)], 1),)

    def score(self, embedded: tuple[Tensor, ...], batch: Batch) -> Step:
        """low [A B], high [A B, 2B global], A = 2 + 2P: the two views, then each small crop for the first and for the
        second; infinite for the images' own two views."""
        views, small = embedded[0].split([2, embedded[0].shape[1] - 2], 1)
        temperature = self.settings.temperature
        with full_precision(views):
            everyone = self.world.gather(views).flatten(0, 1)
            queries = torch.cat([views, small.repeat_interleave(2, 1)], 1)
            own = false_negatives(batch.ids.repeat_interleave(queries.shape[1]), self.negative_ids(batch))
            of_views = (views[:, 0] * views[:, 1]).sum(1, keepdim=True).expand(-1, 2)
            of_crops = (small[:, :, None] * views[:, None]).sum(3).flatten(1)
            low = -torch.cat([of_views, of_crops], 1).flatten() / temperature
            high = (-(queries.flatten(0, 1) @ everyone.T) / temperature).masked_fill(own, torch.inf)
            scalars = {"learn/false_negative_share": own.to(low.dtype).mean() - 2 / len(everyone)}
            return Step(infonce(low, high).mean(), low, high, scalars, per_sample={"pair": views.detach()})

    def negative_ids(self, batch: Batch) -> Tensor:
        return self.world.gather(batch.ids).repeat_interleave(2)

    def energy_count(self, share: int, batch: int) -> int:
        return 4 * share * batch
