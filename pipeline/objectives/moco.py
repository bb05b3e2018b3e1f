"""MoCo (He et al. 2020, arXiv 1911.05722; v2: Chen et al. 2020, arXiv 2003.04297): a query against a queue of keys."""

import copy

import torch
from torch import Tensor, nn

from pipeline.image import Image
from pipeline.nets import heads, norm, seeded, trunks
from pipeline.objectives.base import Batch, Objective, Step
from pipeline.objectives.energies import infonce, unit, watch
from pipeline.objectives.memory import Queue
from pipeline.settings.nets import Net
from pipeline.settings.objectives import MoCo as Settings
from pipeline.world import World


class MoCo(Objective):
    """Eq. 1: L = - log e^(q k+/T) / (e^(q k+/T) + sum_queue e^(q k/T)); eq. 2: key <- m key + (1 - m) query.

    Keys come from the slow copy of the encoder, whose batch norm keeps statistics of its own batches. The copy moves
    and keys are enqueued in `commit`, after the optimiser's step: the same sequence as the paper's, which moves it at
    the start of the next one.
    """

    recipe = "two"

    def __init__(self, settings: Settings, net: Net, image: Image, samples: int, world: World, seed: int):
        super().__init__()
        self.settings, self.world = settings, world
        self.trunk = trunks.build(net, image, world, seed)
        with seeded(seed, "init", "head"):
            self.head = heads.build(settings.head, self.trunk.features)
        self.key_trunk, self.key_head = copy.deepcopy((self.trunk, self.head))
        self.key_trunk.requires_grad_(False)
        self.key_head.requires_grad_(False)
        norm.stride(self.key_trunk)
        self.queue = Queue(settings.queue, settings.head.dim, seed)

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """-> unit queries and keys [B, V, dim] each: V = 1, view 1 asking for view 2; symmetric, V = 2, also back."""
        first, second = batch.views
        asked = [(first, second), (second, first)] if self.settings.symmetric else [(first, second)]
        queries = [unit(self.head(self.trunk(query))) for query, _ in asked]
        with torch.no_grad():
            keys = [unit(self.key_head(self.key_trunk(key))) for _, key in asked]
        return torch.stack(queries, 1), torch.stack(keys, 1)

    def score(self, embedded: tuple[Tensor, ...], batch: Batch) -> Step:
        """low [V B], high [V B, queue]: infinite for slots that are no negatives."""
        q, k = embedded
        with torch.autocast(q.device.type, enabled=False):
            low = -(q * k).sum(2).flatten() / self.settings.temperature
            high = -(q.flatten(0, 1) @ self.queue.keys.T) / self.settings.temperature
            own = batch.ids.repeat_interleave(q.shape[1])
            if self.settings.mask_own:
                high = high.masked_fill(self.queue.hidden(own), torch.inf)
            scalars = watch(q.detach()[:, 0], low.detach(), high.detach(), self.settings.temperature)
            scalars["learn/queue_age"] = self.queue.age(batch.step).to(low.dtype)
            scalars["learn/own_share"] = (own[:, None] == self.queue.ids).to(low.dtype).mean()
            pending = {"keys": self.world.gather(k), "ids": self.world.gather(batch.ids)}
            return Step(infonce(low, high).mean(), low, high, scalars, pending)

    @torch.no_grad()
    def commit(self, pending: dict[str, Tensor], batch_step: int) -> None:
        """Moves the key encoder's parameters, then enqueues keys [n, V, dim] of ids [n]: all of one view, then all of
        the other."""
        for slow, fast in ((self.key_trunk, self.trunk), (self.key_head, self.head)):
            for key, query in zip(slow.parameters(), fast.parameters(), strict=True):
                key.lerp_(query, 1 - self.settings.momentum)
        keys, ids = pending["keys"], pending["ids"]
        self.queue.write(keys.transpose(0, 1).flatten(0, 1), ids.repeat(keys.shape[1]), batch_step)

    @property
    def encoder(self) -> nn.Module:
        return self.trunk
