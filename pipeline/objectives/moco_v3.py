"""MoCo v3 (Chen, Xie & He 2021, arXiv 2104.02057): a predictor on the queries, the batch's keys as negatives."""

import torch
from torch import Tensor, nn

from pipeline.image import Image
from pipeline.nets import heads, seeded, trunks
from pipeline.objectives.base import Batch, Objective, Step
from pipeline.objectives.energies import collapsed, infonce, unit
from pipeline.objectives.moco import distance, follow, momentum, slow_copy
from pipeline.settings.nets import Net
from pipeline.settings.objectives import MoCoV3 as Settings
from pipeline.world import World


class MoCoV3(Objective):
    """Algorithm 1: L = 2 T (ctr(q1, k2) + ctr(q2, k1)), ctr(q, k) = - log e^(q k+/T) / sum_batch e^(q k/T).

    Each direction is a mean over the global batch, the two are added. Keys come from the slow copy of trunk and head;
    the predictor has none. No queue: the keys of the whole global batch are the negatives.
    """

    coupled = True

    def __init__(self, settings: Settings, net: Net, image: Image, samples: int, world: World, seed: int):
        super().__init__()
        self.settings, self.world = settings, world
        self.trunk = trunks.build(net, image, world, seed)
        with seeded(seed, "init", "head"):
            self.head = heads.build(settings.head, self.trunk.features, net.norm, world)
            self.predictor: nn.Module = nn.Identity()
            if settings.predictor is not None:
                self.predictor = heads.build(settings.predictor, settings.head.dim, net.norm, world)
        self.key_trunk, self.key_head = slow_copy(net, self.trunk, self.head)

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """-> unit queries of both views and, in the same places, the unit keys they ask for: [B, 2, dim] each."""
        queries = [unit(self.predictor(self.head(self.trunk(view)))) for view in batch.views]
        with torch.no_grad():
            keys = [unit(self.key_head(self.key_trunk(view))) for view in reversed(batch.views)]
        return torch.stack(queries, 1), torch.stack(keys, 1)

    def score(self, embedded: tuple[Tensor, ...], batch: Batch) -> Step:
        """low [2B], high [2B, B global]: a row for each view; infinite where it is no negative of the row."""
        q, k = embedded[0], embedded[1].detach()
        t = self.settings.temperature
        with torch.autocast(q.device.type, enabled=False):
            everyone, ids = self.world.gather(k), self.world.gather(batch.ids)
            low = -(q * k).sum(2).flatten() / t
            high = (-torch.einsum("bvd,gvd->bvg", q, everyone) / t).flatten(0, 1)
            if self.settings.mask_own:
                own = batch.ids[:, None] == ids
            else:  # only the positive itself, which stands in low
                places = self.world.rank * len(q) + torch.arange(len(q), device=q.device)
                own = places[:, None] == torch.arange(len(ids), device=q.device)
            high = high.masked_fill(own.repeat_interleave(2, 0), torch.inf)
            scalars = {"learn/own_share": own.to(low.dtype).mean() - 1 / len(ids)}
            loss = 2 * t * 2 * infonce(low, high).mean()
            return Step(loss, low, high, scalars, {}, q.detach()[:, 0], k[:, 0])

    @torch.no_grad()
    def commit(self, pending: dict[str, Tensor], batch_step: int, progress: float = 0.0) -> None:
        """Moves the key encoder's parameters."""
        for slow, fast in ((self.key_trunk, self.trunk), (self.key_head, self.head)):
            follow(slow, fast, momentum(self.settings, progress))

    def watched(self, step: int) -> dict[str, Tensor]:
        return {"learn/key_distance": distance(self.trunk, self.key_trunk)}

    def pair(self, embedded: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        return embedded[0][:, 0], embedded[1][:, 0]

    def collapsed(self, read: dict[str, float], step: Step) -> dict[str, str]:
        return collapsed(read, step)

    @property
    def encoder(self) -> nn.Module:
        return self.trunk
