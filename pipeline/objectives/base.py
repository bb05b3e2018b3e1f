"""What an objective is: a pure forward that gives energies and a loss, and a commit that is the only change of state.

Energies: p is proportional to exp(-E), lower is more compatible. For InfoNCE low = -s+/T and high = -s-/T, so that
loss = mean(low + logsumexp(-[low, high])).
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import keyed


def sent(numbers: np.ndarray, device: torch.device) -> Tensor:
    """A tensor of the numbers on a device, which a step does not wait for."""
    tensor = torch.from_numpy(numbers)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@dataclass(frozen=True)
class Batch:
    """This rank's share of a micro-batch. ``views``: float tensors [B, ...] as the settings' ``inputs`` say;
    ``ids``: the samples' dense ids, int64 [B]; ``progress``: share of training done, 0 to 1."""

    views: tuple[Tensor, ...]
    ids: Tensor
    step: int = 0
    epoch: int = 0
    seed: int = 0
    progress: float = 1.0

    def _draw(self, draw, op: str, shape: tuple[int, ...]) -> Tensor:
        count = 1
        for side in shape:
            count *= side
        numbers = draw(count, self.seed, self.epoch, self.ids.cpu().numpy(), op)
        return sent(numbers, self.ids.device).to(self.views[0]).reshape(len(self.ids), *shape)

    def uniform(self, op: str, *shape: int) -> Tensor:
        """Numbers in [0, 1) that depend on (seed, epoch, sample, op) alone -> [B, *shape]."""
        return self._draw(keyed.uniform, op, shape)

    def normal(self, op: str, *shape: int) -> Tensor:
        """Standard normal numbers that depend on (seed, epoch, sample, op) alone -> [B, *shape]."""
        return self._draw(keyed.normal, op, shape)


@dataclass(frozen=True)
class Step:
    """``loss``: 0-d, this rank's mean. ``low`` [R]: energies of data or positives, R = B or, where each sample gives
    more, a multiple, a sample's next to each other; ``high`` [R, K]: of what is pushed up, infinite where it is no
    negative of the row, [R, 0] where volume is limited instead. ``scalars``: detached 0-d tensors by tag. ``pending``:
    detached rows of the whole micro-batch over all ranks, in order, for `Objective.commit`. Contrastive: ``rows`` and
    ``positives`` [B, dim], detached unit rows of the first view and of what it is to be near, for what is watched."""

    loss: Tensor
    low: Tensor
    high: Tensor
    scalars: dict[str, Tensor] = field(default_factory=dict)
    pending: dict[str, Tensor] = field(default_factory=dict)
    rows: Tensor | None = None
    positives: Tensor | None = None


class Objective(nn.Module):
    """``embed`` works sample by sample; ``score`` may look at the whole batch and at memory. Neither changes state,
    but for batch norm's running statistics."""

    coupled: bool = False
    """Whether the loss of one sample depends on others of its batch (then accumulation needs two passes)."""
    blind_epochs: int = 0
    """Epochs before its energies tell anything."""

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """Rows per sample, [B, ...] each, from the batch's views."""
        raise TypeError(f"{type(self).__name__} does not say how it embeds")

    def score(self, embedded: tuple[Tensor, ...], batch: Batch) -> Step:
        raise TypeError(f"{type(self).__name__} does not say how it scores")

    def forward(self, batch: Batch, part: str = "all") -> Any:
        """The step; with part = "embed" only its rows (the loop's two passes go through DDP by this door)."""
        embedded = self.embed(batch)
        return embedded if part == "embed" else self.score(embedded, batch)

    @torch.no_grad()
    def commit(self, pending: dict[str, Tensor], batch_step: int, progress: float = 0.0) -> None:
        """Once after each applied optimiser step, with the pending rows of the whole global batch; ``progress``: share
        of training that is then done."""

    def watched(self, step: int) -> dict[str, Tensor]:
        """Scalars of its state by tag, 0-d, read where they are logged. Called on all ranks together."""
        return {}

    def collapsed(self, read: dict[str, float], step: Step) -> dict[str, str]:
        """The signs by name, in words, by which the scalars logged of a step say that nothing is learned any more. One
        that does not say which signs it has is not watched, which its training then says."""
        return {}

    def replicated(self) -> dict[str, Tensor]:
        """Weights and memory that every rank holds alike."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def pair(self, embedded: tuple[Tensor, ...]) -> tuple[Tensor, Tensor] | None:
        """Of `embed`'s rows, those of the first view and of the second that is its positive, [B, dim] each."""
        return None

    @property
    def encoder(self) -> nn.Module:
        """What is probed and exported: normalised images [B, C, H, W] -> features [B, D]."""
        raise TypeError(f"{type(self).__name__} has no encoder")
