"""PIRL (Misra & van der Maaten 2020, arXiv 1912.01991): an image and its shuffled patches, against a memory of all."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import keyed
from pipeline.nets import heads, seeded, trunks
from pipeline.objectives.base import Batch, Setup, Step
from pipeline.objectives.contrastive import Contrastive, false_negatives
from pipeline.objectives.energies import binary_nce, full_precision, infonce, nce, unit
from pipeline.objectives.joint_embeddings import embed_crops
from pipeline.objectives.memory import Bank
from pipeline.settings.objectives import PIRL as Settings
from pipeline.tensors import send


class PIRL(Contrastive):
    """Eq. 5: L = weight L(m_I, g(patches)) + (1 - weight) L(m_I, f(image)), with m_I the image's row in the bank.

    L is by default the noise contrastive estimator of eq. 3-4 over rows drawn once a step for the whole batch. Both
    terms meet the row, never each other. The row moves towards f(image) in `commit`. With pretext rotation the second
    term sees the other view, turned by a quarter as often as drawn, through a head like f. Small crops meet the row as
    the image does, through f: the image's term is then the mean of its own and theirs.
    """

    Settings = Settings
    monitor_warmup_epochs = 2  # in the first, rows are random
    leaks = False
    commit_changes = ("bank.", "log_partition")
    training_state = ("bank.",)
    log_partition: Tensor

    def __init__(self, settings: Settings, setup: Setup):
        super().__init__(settings, setup)
        self.dim, self.samples = settings.head.dim, setup.samples
        norms, world = setup.net.norm, setup.world
        with seeded(setup.seed, "init", "head"):
            self.f, self.g = (heads.build(settings.head, self.trunk.features, norms, world) for _ in "fg")
            if settings.pretext == "jigsaw":
                self.g = heads.PatchHead(self.g, settings.head.dim, settings.jigsaw.cells**2)
        self.bank = Bank(setup.samples, settings.head.dim, setup.seed, world, settings.bank == "sharded")
        if settings.loss == "binary_nce":  # of image and patches; not a number until the first commit
            self.register_buffer("log_partition", torch.full((2,), torch.nan))

    @property
    def projection(self) -> nn.Module:
        return self.f

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """-> unit rows of the image, of its patches (or of the turned view) and of P small crops, [B, 2 + P, dim]."""
        image, other, *small = batch.views
        f = unit(self.f(self.trunk(image)))
        if self.settings.pretext == "rotation":
            turns = (4 * batch.uniform("rotation")).long()
            g = unit(self.g(self.trunk(turn(other, turns))))
        else:
            g = unit(self.g(trunks.embed_patches(self.trunk, other)))
        return (torch.cat([torch.stack([f, g], 1), *(embed_crops(self.trunk, self.f, crops) for crops in small)], 1),)

    def score(self, embedded: tuple[Tensor, ...], batch: Batch) -> Step:
        """low [A B], high [A B, K], A = 2 + P: of each image itself, its patches, its small crops; infinite for the
        own row."""
        (rows,) = embedded
        settings = self.settings
        with full_precision(rows):
            columns = self.negative_ids(batch)
            every = len(columns) == self.samples and settings.bank == "replicated"
            others = self.bank.rows if every else self.bank.read(columns)
            memory = self.bank.read_own(batch.ids)
            low = -(rows * memory[:, None]).sum(2).flatten() / settings.temperature
            high = -(rows.flatten(0, 1) @ others.T) / settings.temperature
            own = false_negatives(batch.ids.repeat_interleave(rows.shape[1]), columns)
            if settings.mask_own:
                high = high.masked_fill(own, torch.inf)
            pending = {"rows": self.world.gather(rows.detach()[:, 0]), "ids": self.world.gather(batch.ids)}
            if settings.loss == "binary_nce":
                pending["log_partition"] = estimate = self._estimate(low.detach(), high.detach(), rows.shape[1])
                fixed = torch.where(self.log_partition.isnan(), estimate[0], self.log_partition)
                odds = math.log(len(others) / self.samples)
                fixed = torch.cat([fixed, fixed[:1].expand(rows.shape[1] - 2)])  # small crops are images
                losses = binary_nce(low, high, fixed.repeat(len(rows)), odds)
            else:
                losses = (infonce if settings.loss == "infonce" else nce)(low, high)
            of_image, of_patches, *of_crops = losses.view(len(rows), -1).unbind(1)
            if of_crops:
                of_image = torch.stack([of_image, *of_crops]).mean(0)
            scalars = {"learn/false_negative_share": own.to(low.dtype).mean()}
            loss = ((1 - settings.weight) * of_image + settings.weight * of_patches).mean()
            return Step(loss, low, high, scalars, pending, {"pair": rows[:, :2].detach()})

    def negative_ids(self, batch: Batch) -> Tensor:
        """The rows that a step's whole global batch is held against: drawn without repetition, or all in order."""
        count = self.settings.negatives
        if count == 0 or count >= self.samples:
            return torch.arange(self.samples, device=batch.ids.device)
        drawn = keyed.permute(np.arange(count), self.samples, batch.seed, batch.step, "negatives")
        return send(drawn, batch.ids.device)

    def energy_count(self, share: int, batch: int) -> int:
        return 2 * share * min(self.settings.negatives or self.samples, self.samples)

    def _estimate(self, low: Tensor, high: Tensor, count: int) -> Tensor:
        """log(samples x mean e^-E) over the global batch's positives and negatives, of image and patches -> [1, 2]."""
        logits = torch.cat([low[:, None], high], 1).neg().unflatten(0, (-1, count))[:, :2]
        seen = torch.isfinite(logits)
        total = self.world.sum(torch.stack([logits.exp().sum((0, 2)), seen.to(low.dtype).sum((0, 2))]))
        return (math.log(self.samples) + torch.log(total[0] / total[1]))[None]

    @torch.no_grad()
    def commit(self, pending: dict[str, Tensor], batch_step: int, progress: float = 0.0) -> None:
        """Moves the batch's rows [n, dim] of ids [n]; fixes binary_nce's partition the first time."""
        self.bank.write(pending["rows"], pending["ids"], batch_step, self.settings.momentum)
        if "log_partition" in pending:
            estimates = pending["log_partition"]
            mean = estimates.logsumexp(0) - math.log(len(estimates))
            self.log_partition.copy_(torch.where(self.log_partition.isnan(), mean, self.log_partition))

    def diagnostics(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        return super().diagnostics(step, batch) | {"learn/queue_age": self.bank.age(batch.step)}

    def replicated(self) -> dict[str, Tensor]:
        owned = ("bank.rows", "bank.last_step") if self.bank.size > 1 else ()
        return {k: v for k, v in super().replicated().items() if k not in owned}


def turn(images: Tensor, turns: Tensor) -> Tensor:
    """Square images [B, C, S, S], each by its number of quarter turns, int64 [B]."""
    every = torch.stack([torch.rot90(images, k, (2, 3)) for k in range(4)])
    return every[turns, torch.arange(len(images), device=images.device)]
