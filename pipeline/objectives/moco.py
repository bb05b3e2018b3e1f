"""MoCo (He et al. 2020, arXiv 1911.05722; v2: Chen et al. 2020, arXiv 2003.04297): a query against a queue of keys."""

import torch
from torch import Tensor

from pipeline.nets import ema
from pipeline.objectives.base import Batch, Setup, Step
from pipeline.objectives.contrastive import Contrastive, false_negatives
from pipeline.objectives.energies import full_precision, infonce, unit
from pipeline.objectives.joint_embeddings import embed_crops
from pipeline.objectives.memory import Queue
from pipeline.settings.objectives import MoCo as Settings


class MoCo(Contrastive):
    """Eq. 1: L = - log e^(q k+/T) / (e^(q k+/T) + sum_queue e^(q k/T)); eq. 2: key <- m key + (1 - m) query.

    Keys come from a momentum encoder, whose batch norms keep statistics of their own batches. It moves, and keys are
    enqueued, in `commit`, after the optimiser's step: the same sequence as the paper's, which moves it at the start of
    the next one.
    """

    Settings = Settings
    commit_changes = training_state = ("key_trunk.", "key_head.", "queue.")

    def __init__(self, settings: Settings, setup: Setup):
        super().__init__(settings, setup)
        self.dim = settings.head.dim
        self.head, _ = self.build_heads(setup)
        self.key_trunk, self.key_head = ema.momentum_encoder(setup.net, self.trunk, self.head)
        self.queue = Queue(settings.queue, settings.head.dim, setup.seed)

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """-> unit queries [B, Q, dim] and unit keys [B, K, dim]; the positive of query i is key i mod K.

        K is 1, view 1 against the key of view 2, or 2 where the loss is symmetric, also view 2 against the key of
        view 1. Q is K; with P small crops it is K + P K, since each crop is a query for each key.
        """
        first, second, *small = batch.views
        pairs = [(first, second), (second, first)] if self.settings.symmetric else [(first, second)]
        queries = torch.stack([unit(self.head(self.trunk(query))) for query, _ in pairs], 1)
        for crops in small:
            more = embed_crops(self.trunk, self.head, crops)
            queries = torch.cat([queries, more.repeat_interleave(len(pairs), 1)], 1)
        with torch.no_grad():
            keys = [unit(self.key_head(self.key_trunk(key))) for _, key in pairs]
        return queries, torch.stack(keys, 1)

    def score(self, embedded: tuple[Tensor, ...], batch: Batch) -> Step:
        """low [Q B], high [Q B, queue]: infinite for slots that are no negatives."""
        q, k = embedded
        with full_precision(q):
            low = -(q * k.repeat(1, q.shape[1] // k.shape[1], 1)).sum(2).flatten() / self.settings.temperature
            high = -(q.flatten(0, 1) @ self.queue.keys.T) / self.settings.temperature
            own = batch.ids.repeat_interleave(q.shape[1])
            if self.settings.mask_own:
                high = high.masked_fill(self.queue.hidden(own), torch.inf)
            share = false_negatives(own, self.queue.ids).to(low.dtype).mean()
            pending = {"keys": self.world.gather(k), "ids": self.world.gather(batch.ids)}
            loss = infonce(low, high).mean() * (k.shape[1] if self.settings.reduction == "sum" else 1)
            pair = self.pair((q, k)).detach()
            return Step(loss, low, high, {"learn/false_negative_share": share}, pending, {"pair": pair})

    @torch.no_grad()
    def commit(self, pending: dict[str, Tensor], batch_step: int, progress: float = 0.0) -> None:
        """Moves the momentum encoder's parameters, then enqueues keys [n, V, dim] of ids [n]: all of one view, then
        all of the other."""
        ema.follow(self.settings, progress, (self.key_trunk, self.trunk), (self.key_head, self.head))
        keys, ids = pending["keys"], pending["ids"]
        self.queue.write(keys.transpose(0, 1).flatten(0, 1), ids.repeat(keys.shape[1]), batch_step)

    def diagnostics(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        distance = ema.distance(self.trunk, self.key_trunk)
        memory = {"learn/queue_age": self.queue.age(batch.step), "learn/key_distance": distance}
        return super().diagnostics(step, batch) | memory

    def pair(self, embedded: tuple[Tensor, ...]) -> Tensor:
        """The first view's query and the key it asks for."""
        return torch.stack([embedded[0][:, 0], embedded[1][:, 0]], 1)

    def negative_ids(self, batch: Batch) -> Tensor:
        return self.queue.ids

    def energy_count(self, share: int, batch: int) -> int:
        return share * self.settings.queue * (2 if self.settings.symmetric else 1)
