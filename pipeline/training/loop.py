"""The training loop of every objective: fetch, schedule, forward and backward, clip, step, commit, log, save.

Nothing in it depends on an objective or a data set; every stage that trains calls `train`.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from pipeline import progress
from pipeline.board import Board
from pipeline.errors import Stopped
from pipeline.lines import say
from pipeline.objectives.base import Batch, Objective, Step
from pipeline.settings.training import Training
from pipeline.sheets import Picture
from pipeline.training import gradients, monitor, optim, state
from pipeline.world import World


class MicroBatch(Protocol):
    """This rank's share of a micro-batch: views, float [B, ...] each, and sample ids from 0 on, int64 [B]."""

    @property
    def views(self) -> tuple[Tensor, ...]: ...
    @property
    def ids(self) -> Tensor: ...


class Loader(Protocol):
    """Yields batches from any step on, the same for any number of ranks and threads. ``seconds``: spent so far in each
    of its stages; ``bad``: samples so far that could not be read."""

    steps_per_epoch: int
    seconds: dict[str, float]
    bad: int

    def steps(self, start: int) -> Iterable[tuple[int, int, Sequence[MicroBatch]]]:
        """(step, epoch, this rank's micro-batches), from step ``start`` to the last."""
        ...


def train(
    objective: Objective,
    loader: Loader,
    settings: Training,
    *,
    total: int,
    seed: int,
    out: Path,
    world: World,
    export: Callable[[dict[str, Tensor], Path], None],
    sheets: Callable[[MicroBatch], Mapping[str, Picture]] | None = None,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
) -> dict[str, float]:
    """Trains ``objective`` for ``total`` steps, from the newest checkpoint under ``out`` if there is one.

    On rank 0 ``export(weights, folder)`` writes the model at each snapshot and at the end, ``sheets`` draws the first
    step's micro-batch, pictures by tag, and ``evaluate`` returns scalars of the encoder at every checkpoint. Returns
    the last logged scalars. After a signal it saves and raises Stopped. Raises NoProgressError at a loss or gradient
    that is not finite, at a collapse, and where ranks have different weights; the last good checkpoint is kept.
    """
    now = state.begin(objective, settings, out / "checkpoints", world)
    board = Board(out if world.main else None, now.step)
    finite = monitor.FiniteCheck(type(objective).__name__)
    alarm = monitor.CollapseAlarm(objective, settings, loader.steps_per_epoch, total)
    throughput = monitor.Throughput(loader, settings.batch, now.model, world)
    announce(objective, settings, board, now.step, world)
    snapshots = snapshot_steps(total, settings.snapshots)
    save_every = settings.save_steps or settings.save_epochs * loader.steps_per_epoch
    last: dict[str, float] = {}

    def save(step: int) -> None:
        finite.check()
        monitor.compare_ranks(objective, step, world)
        state.save(now, step, settings, seed, world, prune=alarm.calm)

    def write_model(folder: Path) -> None:
        weights = now.weights()
        if world.main:
            export(weights, folder)

    for step, epoch, micro_batches in loader.steps(now.step):
        if world.stopping():
            raise stopped(save, step, total, board)
        if step == 0 and world.main and sheets is not None:
            for tag, sheet in sheets(micro_batches[0]).items():
                board.image(tag, 0, sheet)
        rate = optim.set_rate(now.optimiser, settings, step, total, loader.steps_per_epoch)
        batches = [batch(x, settings, step, epoch, seed, step / total) for x in micro_batches]
        with precision(settings, world):
            result = backward(now.model, objective, batches)
        optim.drop_frozen(now.optimiser, step)
        norm = gradients.clip(objective, settings.clip)
        finite.note(step, result.loss, norm)
        now.optimiser.step()
        now.optimiser.zero_grad(set_to_none=True)
        objective.commit(result.pending, step, (step + 1) / total)
        now.update_average(settings, step, total)
        done = step + 1
        saving = done % save_every == 0 or done == total
        if settings.check_steps and done % settings.check_steps == 0:
            monitor.compare_ranks(objective, done, world)
        if done % settings.log_steps == 0 or saving:
            with torch.compiler.set_stance("force_eager") if settings.compile else nullcontext():
                last = monitor.step_scalars(objective, result, batches[0], norm, rate, world)
            finite.check()
            if saving and evaluate is not None:
                last |= evaluation(now, evaluate, world)
            board.scalars(done, last)
            board.timings(done, throughput.read(done))
            if world.main:
                progress.report(out, done, total, loss=last["learn/loss"], images_per_s=throughput.images_per_s)
            alarm.note(done, last)
        if done in snapshots:
            write_model(out / "snapshots" / f"{done:08d}")
        if saving:
            monitor.histograms(board, done, result)
            save(done)
    write_model(out)
    board.close()
    return last or board.last


def backward(model: nn.Module, objective: Objective, batches: list[Batch]) -> Step:
    """Accumulates the gradient of the mean loss over the global batch; returns the step, detached. ``model``: the
    objective, or the DDP module around it."""
    if len(batches) > 1:
        several = gradients.two_passes if objective.coupled else gradients.one_pass
        return several(model, objective, batches)
    step: Step = model(batches[0])
    step.loss.backward()
    return gradients.detached(step)


def announce(objective: Objective, settings: Training, board: Board, step: int, world: World) -> None:
    """Prints the lines of `monitor.caveats`, and logs the cost of restarts."""
    if world.main:
        for line in monitor.caveats(objective, settings, world):
            say(line)
    if cost := monitor.restart_cost(board, step, settings.batch):
        board.timings(step, cost)


def stopped(save: Callable[[int], None], step: int, total: int, board: Board) -> Stopped:
    """Saves, logs the seconds that took, which must be fewer than the scheduler's grace period, and closes the board.
    Returns the exception to raise."""
    begun = time.perf_counter()
    save(step)
    seconds = time.perf_counter() - begun
    board.timings(step, {"ops/preempt_save_s": seconds})
    board.close()
    return Stopped(
        f"asked to stop: saved at step {step} of {total} in {seconds:.2g} s; the same command goes on from there"
    )


def batch(micro: MicroBatch, settings: Training, step: int, epoch: int, seed: int, progress: float) -> Batch:
    """The objective's batch from a micro-batch, with views in the precision of the settings."""
    dtype = torch.float64 if settings.precision == "fp64" else torch.float32
    return Batch(tuple(view.to(dtype) for view in micro.views), micro.ids, step, epoch, seed, progress, dtype)


def precision(settings: Training, world: World) -> torch.autocast:
    """The autocast context of a step; for CUDA graphs it also marks the step's beginning."""
    if settings.compile == "graphs":
        torch.compiler.cudagraph_mark_step_begin()
    return torch.autocast(world.device.type, torch.bfloat16, enabled=settings.precision == "bf16")


def evaluation(now: state.State, evaluate: Callable[[nn.Module], dict[str, float]], world: World) -> dict[str, float]:
    """Evaluates the encoder as it would be exported; scalars on rank 0, {} on others. All ranks call it together."""
    with now.encoder() as encoder:
        return evaluate(encoder) if world.main else {}


def snapshot_steps(total: int, count: int) -> set[int]:
    """``count`` evenly spaced steps before the last one."""
    return {round(total * i / (count + 1)) for i in range(1, count + 1)} - {0}
