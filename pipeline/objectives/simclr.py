"""SimCLR (Chen et al. 2020, arXiv 2002.05709): both views of the whole batch against each other."""

import torch
from torch import Tensor, nn

from pipeline.image import Image
from pipeline.nets import heads, seeded, trunks
from pipeline.objectives.base import Batch, Objective, Step
from pipeline.objectives.energies import collapsed, infonce, unit
from pipeline.settings.nets import Net
from pipeline.settings.objectives import SimCLR as Settings
from pipeline.world import World


class SimCLR(Objective):
    """NT-Xent, eq. 1: l(i, j) = - log e^(s_ij/T) / sum_{k != i} e^(s_ik/T) over the 2B views of the global batch."""

    coupled = True

    def __init__(self, settings: Settings, net: Net, image: Image, samples: int, world: World, seed: int):
        super().__init__()
        self.settings, self.temperature, self.world = settings, settings.temperature, world
        self.trunk = trunks.build(net, image, world, seed)
        with seeded(seed, "init", "head"):
            self.head = heads.build(settings.head, self.trunk.features, net.norm, world)

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """-> unit rows of both views [B, 2, dim]."""
        # Sample by sample, both views in one pass: batch norm sees both, and blocks of samples stay blocks.
        images = torch.stack(batch.views, 1)
        return (unit(self.head(self.trunk(images.flatten(0, 1)))).unflatten(0, images.shape[:2]),)

    def score(self, embedded: tuple[Tensor, ...], batch: Batch) -> Step:
        """low [2B], high [2B, 2B global]: infinite for the images' own two views."""
        (rows,) = embedded
        with torch.autocast(rows.device.type, enabled=False):
            everyone = self.world.gather(rows).flatten(0, 1)
            own = batch.ids.repeat_interleave(2)[:, None] == self.world.gather(batch.ids).repeat_interleave(2)
            low = -(rows[:, 0] * rows[:, 1]).sum(1).repeat_interleave(2) / self.temperature
            high = (-(rows.flatten(0, 1) @ everyone.T) / self.temperature).masked_fill(own, torch.inf)
            scalars = {"learn/own_share": own.to(low.dtype).mean() - 2 / len(everyone)}
            return Step(infonce(low, high).mean(), low, high, scalars, {}, *rows.detach().unbind(1))

    def pair(self, embedded: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        return embedded[0][:, 0], embedded[0][:, 1]

    def collapsed(self, read: dict[str, float], step: Step) -> dict[str, str]:
        return collapsed(read, step)

    @property
    def encoder(self) -> nn.Module:
        return self.trunk
