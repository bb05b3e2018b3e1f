"""SimCLR (Chen et al. 2020, arXiv 2002.05709): both views of the whole batch against each other."""

import torch
from torch import Tensor

from pipeline.nets import heads, seeded
from pipeline.objectives.base import Batch, Setup, Step
from pipeline.objectives.contrastive import Contrastive, false_negatives
from pipeline.objectives.energies import full_precision, infonce, unit
from pipeline.settings.objectives import SimCLR as Settings


class SimCLR(Contrastive):
    """NT-Xent, eq. 1: l(i, j) = - log e^(s_ij/T) / sum_{k != i} e^(s_ik/T) over the 2B views of the global batch."""

    Settings = Settings
    coupled = True

    def __init__(self, settings: Settings, setup: Setup):
        super().__init__(settings, setup)
        self.dim = settings.head.dim
        with seeded(setup.seed, "init", "head"):
            self.head = heads.build(settings.head, self.trunk.features, setup.net.norm, setup.world)

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """-> unit rows of both views [B, 2, dim]."""
        # Sample by sample, both views in one pass: batch norm sees both, and blocks of samples stay blocks.
        images = torch.stack(batch.views, 1)
        return (unit(self.head(self.trunk(images.flatten(0, 1)))).unflatten(0, images.shape[:2]),)

    def score(self, embedded: tuple[Tensor, ...], batch: Batch) -> Step:
        """low [2B], high [2B, 2B global]: infinite for the images' own two views."""
        (rows,) = embedded
        temperature = self.settings.temperature
        with full_precision(rows):
            everyone = self.world.gather(rows).flatten(0, 1)
            own = false_negatives(batch.ids.repeat_interleave(2), self.negative_ids(batch))
            low = -(rows[:, 0] * rows[:, 1]).sum(1).repeat_interleave(2) / temperature
            high = (-(rows.flatten(0, 1) @ everyone.T) / temperature).masked_fill(own, torch.inf)
            scalars = {"learn/false_negative_share": own.to(low.dtype).mean() - 2 / len(everyone)}
            return Step(infonce(low, high).mean(), low, high, scalars, per_sample={"pair": rows.detach()})

    def negative_ids(self, batch: Batch) -> Tensor:
        return self.world.gather(batch.ids).repeat_interleave(2)

    def energy_count(self, share: int, batch: int) -> int:
        return 4 * share * batch
