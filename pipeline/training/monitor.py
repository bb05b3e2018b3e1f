"""Monitors a training: scalars of each step, values that are not finite, ranks that differ, collapse, and speed."""

import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.board import Board
from pipeline.errors import DivergedError, NoProgressError
from pipeline.lines import say
from pipeline.nets import norm
from pipeline.objectives.base import PATIENCE_STEPS, Batch, Objective, Step
from pipeline.settings.training import Training
from pipeline.training import sharded
from pipeline.world import World

if TYPE_CHECKING:
    from pipeline.training.loop import Loader

PICTURED = 1 << 16  # energies of negatives that a histogram shows at most


def caveats(objective: Objective, settings: Training, world: World) -> Iterator[str]:
    """Lines to print before the first step, about settings that have no effect here or another than expected."""
    yield from objective.caveats()
    norms = sum(isinstance(part, norm.BatchNorm) for part in objective.modules())
    if settings.accumulate > 1 and norms:
        yield (
            f"accumulate {settings.accumulate}: the {norms} batch norms take their statistics from micro-batches of "
            f"{settings.batch // settings.accumulate} images, not from the batch of {settings.batch}, so this is not "
            f"the big batch; with norm.kind none it is, exactly"
        )
    if settings.precision == "bf16" and not world.fast_bf16():
        yield "precision bf16: this CPU has no bf16 arithmetic, so it is slower than fp32 here"
    if settings.collapse != "ignore" and type(objective).collapse_signs is Objective.collapse_signs:
        yield f"{type(objective).__name__} has no sign by which a collapse is seen: look at its own scalars"


def compare_ranks(objective: Objective, step: int, world: World) -> None:
    """Raises NoProgressError, on all ranks, where a parameter or buffer that should be the same on all differs in a
    bit."""
    replicated = {name: x for name, x in objective.replicated().items() if not sharded.is_sharded(x)}
    if world.size == 1 or not replicated:
        return
    table = world.gather(torch.stack([checksum(x.detach()) for x in replicated.values()])[None])
    differs = (table != table[0]).any(0).tolist()
    if any(differs):
        name = next(n for n, d in zip(replicated, differs, strict=True) if d)
        ranks = [r for r in range(world.size) if (table[r] != table[0]).any()]
        raise NoProgressError(
            f"{type(objective).__name__}: {name} and {sum(differs) - 1} other tensors of rank {ranks[0]} are not "
            f"those of rank 0 at step {step}: the ranks have come apart; the last good checkpoint is kept. Check that "
            f"all nodes run the same versions and devices, then run the same command again"
        )


def checksum(x: Tensor) -> Tensor:
    """A checksum of the bits of x, whose words are weighted by their position: int64, 0-d."""
    words = x.contiguous().view(-1).view(torch.uint8)
    width = next(w for w in (8, 4, 2, 1) if words.numel() % w == 0)
    numbers = words.view({8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}[width]).to(torch.int64)
    return (numbers * (2 * (torch.arange(len(numbers), device=x.device) % 32749) + 1)).sum()


def step_scalars(
    objective: Objective, result: Step, batch: Batch, norm: Tensor, lr: float, world: World
) -> dict[str, float]:
    """The scalars logged for a step, averaged over ranks. Only here the host waits for the device."""
    values = {"learn/loss": result.loss, "energy/low": result.low.mean()}
    if result.high.numel():
        finite = torch.isfinite(result.high)  # entries that are not finite are no negatives of their row
        means = torch.where(finite, result.high, 0).sum(1) / finite.sum(1).clamp(min=1)
        values["energy/high"] = means.mean()
        values["energy/gap"] = values["energy/high"] - values["energy/low"]
    values |= result.scalars | objective.diagnostics(result, batch)
    column = torch.stack([sharded.full_tensor(v.detach()).double().reshape(()) for v in values.values()])
    table = world.sum(column) / world.size
    return dict(zip(values, table.tolist(), strict=True)) | {"learn/grad_norm": float(norm), "learn/lr": lr}


def histograms(board: Board, step: int, result: Step) -> None:
    """Writes histograms of the energies of positives and of some negatives."""
    board.histogram("energy/low", step, result.low.float().cpu().numpy())
    if result.high.numel():
        some = result.high[:, :: max(1, result.high.numel() // PICTURED)].float().cpu()
        board.histogram("energy/high", step, some[torch.isfinite(some)].numpy())


class CollapseAlarm:
    """Detects collapse: a sign of it (`Objective.collapse_signs`) has lasted for its patience in steps, or is there at
    the last step, since a training may be shorter than that patience. The first PATIENCE_STEPS steps, the warm-up and
    the objective's `monitor_warmup_epochs` are not monitored."""

    def __init__(self, objective: Objective, settings: Training, steps_per_epoch: int, total: int):
        self.objective, self.name, self.do, self.total = objective, type(objective).__name__, settings.collapse, total
        epochs = settings.warmup_epochs + objective.monitor_warmup_epochs
        self.from_step = PATIENCE_STEPS + round(epochs * steps_per_epoch)
        self.since: dict[str, int] = {}

    @property
    def calm(self) -> bool:
        """Whether the last scalars had no sign of collapse."""
        return not self.since

    def note(self, step: int, scalars: dict[str, float]) -> None:
        """Examines the scalars logged for a step. At a collapse it raises NoProgressError or, if so set, prints a
        line; at the last step it prints one, since nothing is left to stop."""
        if self.do == "ignore" or step < self.from_step:
            return
        signs = self.objective.collapse_signs(scalars)
        self.since = {name: self.since.get(name, step) for name in signs}
        lasted = [name for name, first in self.since.items() if step - first >= signs[name].patience_steps]
        named = lasted or (list(signs) if step == self.total else [])
        if not named:
            return
        first = min(self.since[name] for name in named)
        when = f"collapsed at step {first}" if lasted else f"ends with a sign of collapse, there since step {first}"
        text = f"{self.name}: {when}: {'; '.join(signs[name].text for name in named)}"
        if lasted and self.do == "stop":
            advice = f"the last good checkpoint is kept: {self.objective.remedy}; collapse: ignore goes on"
            raise DivergedError(text, advice, first)
        say(text, event="collapse", step=first)
        self.since, self.do = {}, "ignore"  # once


class FiniteCheck:
    """Finds the first step whose loss or gradient norm is not finite. `note` only keeps the 0-d tensors, so that a
    step does not wait for the device; `check` examines them."""

    def __init__(self, name: str):
        self.name = name
        self.notes: list[tuple[int, Tensor, Tensor]] = []

    def note(self, step: int, loss: Tensor, norm: Tensor) -> None:
        self.notes.append((step, loss, norm))

    def check(self) -> None:
        """Raises DivergedError for the first value since the last check that is not finite."""
        if not self.notes:
            return
        steps, *columns = zip(*self.notes, strict=True)
        self.notes = []
        for quantity, column in zip(("loss", "gradient"), columns, strict=True):
            finite = torch.isfinite(torch.stack(column))
            if not finite.all():
                first = steps[int(finite.long().argmin())]
                advice = "the last good checkpoint is kept: lower the learning rate or raise the temperature"
                raise DivergedError(f"{self.name}: the {quantity} is not finite at step {first}", advice, first)


def restart_cost(board: Board, start: int, batch: int) -> dict[str, float]:
    """The cost of restarts, from the logs of earlier processes: the number of restarts, the steps that were computed
    twice in all, and the seconds these took. Empty if the training was not restarted."""
    rows, dropped = board.before
    if not rows and not dropped:
        return {}
    cost = {"ops/restarts": 1.0, "ops/lost_steps": 0.0, "ops/lost_s": 0.0}
    for row in rows:
        cost |= {key: row[key] + (key == "ops/restarts") for key in cost if key in row}
    last = start
    for row in dropped:
        cost["ops/lost_steps"] += row["step"] - last
        cost["ops/lost_s"] += (row["step"] - last) * batch / row.get("speed/images_per_s", math.inf)
        last = row["step"]
    return cost


class Throughput:
    """Measures speed between two calls of `read`: images per second, and seconds per step of the loader's stages and
    of the wait for it."""

    def __init__(self, loader: "Loader", batch: int, model: torch.nn.Module, world: World):
        self.loader, self.batch, self.model, self.world = loader, batch, model, world
        self.seconds, self.step, self.time = dict(loader.seconds), None, time.perf_counter()
        self.images_per_s: float | None = None
        """Between the last two calls of `read`; None until there were two."""

    def read(self, step: int) -> dict[str, float]:
        """The scalars of speed. All ranks call it together."""
        now, seconds = time.perf_counter(), dict(self.loader.seconds)
        steps = step - self.step if self.step is not None else 0
        rates = {f"speed/{k}": (v - self.seconds.get(k, 0.0)) / max(1, steps) for k, v in seconds.items()}
        rates["speed/bad"] = float(self.loader.bad)
        if steps:
            self.images_per_s = rates["speed/images_per_s"] = steps * self.batch / (now - self.time)
            rates["speed/wait_share"] = rates.get("speed/wait", 0.0) * steps / (now - self.time)
        if self.world.size > 1:
            rates |= self.slowest({"speed/wait": rates.get("speed/wait", 0.0)} | self.compute_seconds())
        self.seconds, self.step, self.time = seconds, step, now
        return rates

    def slowest(self, own: dict[str, float]) -> dict[str, float]:
        """The largest of each time over ranks and the rank that has it, since all ranks wait for the slowest."""
        table = self.world.gather(torch.tensor([[*own.values()]], dtype=torch.float64, device=self.world.device))
        rates = {}
        for name, column in zip(own, table.T.tolist(), strict=True):
            rates |= {f"{name}_most": max(column), f"{name}_rank": float(column.index(max(column)))}
            rates |= {"speed/compute_least": min(column)} if name == "speed/compute" else {}
        return rates

    def compute_seconds(self) -> dict[str, float]:
        """Seconds per step of this rank's forward and backward pass without waiting for others, a mean over the steps
        that DDP's logger samples. Empty where weights are sharded."""
        if not hasattr(self.model, "_get_ddp_logging_data"):
            return {}
        clocks = self.model._get_ddp_logging_data()  # type: ignore[operator]
        nanoseconds = sum(float(clocks.get(f"avg_{way}_compute_time", 0)) for way in ("forward", "backward"))
        return {"speed/compute": nanoseconds / 1e9}
