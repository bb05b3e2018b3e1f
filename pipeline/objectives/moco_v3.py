"""MoCo v3 (Chen, Xie & He 2021, arXiv 2104.02057): a predictor on the queries, the batch's keys as negatives."""

import torch
from torch import Tensor, nn

from pipeline.nets import ema
from pipeline.objectives.base import Batch, Setup, Step
from pipeline.objectives.contrastive import Contrastive, false_negatives
from pipeline.objectives.energies import full_precision, infonce, unit
from pipeline.objectives.joint_embeddings import embed_crops
from pipeline.settings.objectives import MoCoV3 as Settings


class MoCoV3(Contrastive):
    """Algorithm 1: L = 2 T (ctr(q1, k2) + ctr(q2, k1)), ctr(q, k) = - log e^(q k+/T) / sum_batch e^(q k/T).

    Each direction is a mean over the global batch, the two are added. Keys come from a momentum encoder of trunk and
    head, without a predictor. No queue: the keys of the whole global batch are the negatives. Small crops are more
    queries, each for the keys of both views; L is then 4 T times the mean over all pairs of a query and its key.
    """

    Settings = Settings
    coupled = True
    commit_changes = training_state = ("key_trunk.", "key_head.")

    def __init__(self, settings: Settings, setup: Setup):
        super().__init__(settings, setup)
        self.dim = settings.head.dim
        self.head, self.predictor = self.build_heads(setup)
        self.key_trunk, self.key_head = ema.momentum_encoder(setup.net, self.trunk, self.head)

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """-> unit queries [B, A, dim] and keys [B, 2, dim]: the first view asks for the second's key, the second for
        the first's; A is 2, and 2 P more of P small crops, each asking for both. Query a asks for key a mod 2."""
        first, second, *small = batch.views
        queries = torch.stack([unit(self.predictor(self.head(self.trunk(view)))) for view in (first, second)], 1)
        for crops in small:
            more = embed_crops(self.trunk, nn.Sequential(self.head, self.predictor), crops)
            queries = torch.cat([queries, more.repeat_interleave(2, 1)], 1)
        with torch.no_grad():
            keys = [unit(self.key_head(self.key_trunk(view))) for view in (second, first)]
        return queries, torch.stack(keys, 1)

    def score(self, embedded: tuple[Tensor, ...], batch: Batch) -> Step:
        """The energies are low [A B] and high [A B, B global]; high is infinite where a key is no negative."""
        q, k = embedded[0], embedded[1].detach()
        t, queries = self.settings.temperature, q.shape[1]
        with full_precision(q):
            everyone, ids = self.world.gather(k).repeat(1, queries // 2, 1), self.negative_ids(batch)
            low = -(q * k.repeat(1, queries // 2, 1)).sum(2).flatten() / t
            high = (-torch.einsum("bvd,gvd->bvg", q, everyone) / t).flatten(0, 1)
            if self.settings.mask_own:
                own = false_negatives(batch.ids, ids)
            else:  # only the positive itself, which stands in low
                positions = torch.arange(len(ids), device=q.device)
                own = false_negatives(self.world.rank * len(q) + positions[: len(q)], positions)
            high = high.masked_fill(own.repeat_interleave(queries, 0), torch.inf)
            scalars = {"learn/false_negative_share": own.to(low.dtype).mean() - 1 / len(ids)}
            loss = 2 * t * 2 * infonce(low, high).mean()
            return Step(loss, low, high, scalars, per_sample={"pair": self.pair((q, k)).detach()})

    def pair(self, embedded: tuple[Tensor, ...]) -> Tensor:
        """The first view's query and its positive key."""
        return torch.stack([embedded[0][:, 0], embedded[1][:, 0]], 1)

    def negative_ids(self, batch: Batch) -> Tensor:
        return self.world.gather(batch.ids)

    def energy_count(self, share: int, batch: int) -> int:
        return 2 * share * batch

    @torch.no_grad()
    def commit(self, pending: dict[str, Tensor], batch_step: int, progress: float = 0.0) -> None:
        """Moves the momentum encoder's parameters."""
        ema.follow(self.settings, progress, (self.key_trunk, self.trunk), (self.key_head, self.head))

    def diagnostics(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        return super().diagnostics(step, batch) | {"learn/key_distance": ema.distance(self.trunk, self.key_trunk)}
