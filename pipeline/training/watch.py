"""What is watched while training: that numbers are finite, how fast it goes, and what a reader should know first."""

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.errors import NoProgressError
from pipeline.nets.norm import BatchNorm
from pipeline.settings.training import Training

if TYPE_CHECKING:
    from pipeline.training.loop import Feed


def micro_statistics(objective: nn.Module, settings: Training) -> str | None:
    """The line that a training with batch norm and accumulation begins with; none where there is nothing to say."""
    normed = sum(isinstance(part, BatchNorm) for part in objective.modules())
    if settings.accumulate == 1 or not normed:
        return None
    return (
        f"accumulate {settings.accumulate}: the {normed} batch norms take their statistics from micro-batches of "
        f"{settings.batch // settings.accumulate} images, not from the batch of {settings.batch}, so this is not the "
        f"big batch; with norm.kind none it is, exactly"
    )


class Finite:
    """Remembers, on the device, the first step whose loss or gradient was not finite; says so when it is checked."""

    def __init__(self, name: str, device: torch.device):
        self.name = name
        self.first = torch.full((2,), torch.inf, dtype=torch.float64, device=device)

    def note(self, step: int, loss: Tensor, norm: Tensor) -> None:
        bad = ~torch.isfinite(torch.stack([loss.double(), norm.double()]))
        self.first = torch.minimum(self.first, torch.where(bad, float(step), torch.inf))

    def check(self) -> None:
        for quantity, step in zip(("loss", "gradient"), self.first.tolist(), strict=True):
            if step != float("inf"):
                raise NoProgressError(
                    f"{self.name}: the {quantity} is not finite at step {int(step)}; the last good checkpoint is "
                    f"kept: lower the learning rate or raise the temperature"
                )


class Meter:
    """Seconds and images since the last reading: how fast, and what the step waited for."""

    def __init__(self, feed: "Feed", batch: int):
        self.feed, self.batch = feed, batch
        self.seconds, self.step, self.time = dict(feed.seconds), None, time.perf_counter()

    def read(self, step: int) -> dict[str, float]:
        now, seconds = time.perf_counter(), dict(self.feed.seconds)
        steps = step - self.step if self.step is not None else 0
        rates = {f"feed/{k}": (v - self.seconds.get(k, 0.0)) / max(1, steps) for k, v in seconds.items()}
        rates["feed/bad"] = float(self.feed.bad)
        if steps:
            rates["feed/images_per_s"] = steps * self.batch / (now - self.time)
        self.seconds, self.step, self.time = seconds, step, now
        return rates
