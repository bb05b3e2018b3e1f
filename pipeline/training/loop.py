"""The one training loop: fetch, forward, backward, clip, step, commit, log, save.

It knows no objective and no data set; every trained stage runs through `train`.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import progress
from pipeline.board import Board
from pipeline.errors import ConfigError, Stopped
from pipeline.lines import say
from pipeline.nets.norm import untracked
from pipeline.objectives.base import Batch, Objective, Step
from pipeline.settings.training import Training
from pipeline.training import checkpoint, optim, sharded, watch
from pipeline.world import World


class Loaded(Protocol):
    """This rank's share of a micro-batch: float views [B, ...] and dense sample ids, int64 [B]."""

    @property
    def views(self) -> tuple[Tensor, ...]: ...
    @property
    def ids(self) -> Tensor: ...


class Feed(Protocol):
    """Batches from any step on, the same for any number of ranks and threads."""

    steps_per_epoch: int
    seconds: dict[str, float]
    bad: int

    def steps(self, start: int) -> Iterable[tuple[int, int, Sequence[Loaded]]]:
        """(step, epoch, this rank's micro-batches), from step ``start`` to the last."""
        ...


def train(
    objective: Objective,
    feed: Feed,
    settings: Training,
    *,
    total: int,
    seed: int,
    out: Path,
    world: World,
    export: Callable[[nn.Module, Path], None],
    sheets: Callable[[tuple[Tensor, ...]], Mapping[str, np.ndarray]] | None = None,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
) -> dict[str, float]:
    """Trains ``objective`` for ``total`` steps, going on from the newest checkpoint under ``out`` if there is one.

    ``export(encoder, folder)`` writes an encoder; it is called for each snapshot along the way and at the end.
    ``sheets``: pictures of the first step's views, uint8 [H, W, 3] by tag, asked of rank 0. ``evaluate``: scalars of
    the encoder, asked of rank 0 at every checkpoint.
    Returns the last logged scalars. Raises Stopped once saved after a signal, NoProgressError at a loss or gradient
    that is not finite, at a collapse, and where ranks have come apart (the last good checkpoint stays).
    """
    objective.to(world.device)
    if settings.precision == "fp64":
        objective.double()
    if settings.channels_last:
        objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if settings.compile:
        compile_networks(objective, settings.compile)
    average = deepcopy(objective.encoder).requires_grad_(False) if settings.ema else None
    found = checkpoint.newest(out / "checkpoints")
    start = restore(found, objective, average)
    pieces = settings.weights == "sharded" and world.size > 1
    if pieces:
        shape = deepcopy(average or objective.encoder).to("meta")
        sharded.cut([*objective.children(), *([average] if average else [])], world)
    model = (objective if pieces else world.wrap(objective)).train()
    optimiser = optim.build(objective, settings)
    if found:
        checkpoint.unpack_optimiser(optimiser, found[0], found[1]["optimiser"])
    board = Board(out if world.main else None, start)
    if world.main:
        for line in watch.beforehand(objective, settings, world):
            say(line)
    marks = snapshot_steps(total, settings.snapshots)
    save_every = settings.save_steps or settings.save_epochs * feed.steps_per_epoch
    alarm = watch.Collapse(objective, settings, feed.steps_per_epoch)
    finite = watch.Finite(type(objective).__name__)
    meter = watch.Meter(feed, settings.batch, model, world)
    if before := watch.lost(board, start, settings.batch):
        board.timings(start, before)
    last: dict[str, float] = {}

    def save(step: int) -> None:
        finite.check()
        watch.compare_ranks(objective, step, world)
        tensors, numbers = whole(objective, average, optimiser)  # of all ranks, where each holds a part
        if world.main:
            keep = settings.keep if alarm.calm else len(checkpoint.steps(out / "checkpoints")) + 1
            store(out, step, tensors, numbers, settings, seed, keep)
        world.barrier()

    def encoder() -> nn.Module:  # asked of all ranks together
        network = average or objective.encoder
        return sharded.filled(shape, network) if pieces else network

    for step, epoch, loaded in feed.steps(start):
        if world.stopping():
            begun = time.perf_counter()
            save(step)
            took = time.perf_counter() - begun  # to be less than the grace between a scheduler's signal and its kill
            board.timings(step, {"ops/preempt_save_s": took})
            board.close()
            raise Stopped(
                f"asked to stop: saved at step {step} of {total} in {took:.2g} s; the same command goes on from there"
            )
        if step == 0 and world.main and sheets is not None:
            for tag, sheet in sheets(tuple(loaded[0].views)).items():
                board.image(tag, 0, sheet)
        for group in optimiser.param_groups:
            group["lr"] = optim.rate(settings, step, total, feed.steps_per_epoch)
        if settings.compile == "graphs":
            torch.compiler.cudagraph_mark_step_begin()
        batches = [micro_batch(x, settings, step, epoch, seed, step / total) for x in loaded]
        with autocast(world, settings):
            result = backward(model, objective, batches)
        norm = clip(objective, settings.clip)
        finite.note(step, result.loss, norm)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        objective.commit(result.pending, step, (step + 1) / total)
        if average is not None:
            follow(average, objective.encoder, settings.ema)
        done = step + 1
        saving = done % save_every == 0 or done == total
        if settings.check_steps and done % settings.check_steps == 0:
            watch.compare_ranks(objective, done, world)
        if done % settings.log_steps == 0 or saving:
            with torch.compiler.set_stance("force_eager") if settings.compile else nullcontext():
                last = scalars(objective, result, batches[0], norm, optimiser.param_groups[0]["lr"], world)
            finite.check()
            if saving and evaluate is not None:
                network = encoder()
                last |= evaluate(network) if world.main else {}
            board.scalars(done, last)
            board.timings(done, meter.read(done))
            if world.main:
                progress.report(out, done, total, f"loss {last['train/loss']:.3f}")
            alarm.note(done, last)
        if done in marks:
            network = encoder()
            if world.main:
                export(network, out / "snapshots" / f"{done:08d}")
        if saving:
            watch.histograms(board, done, result)
            save(done)
    network = encoder()
    if world.main:
        export(network, out)
    board.close()
    return last or board.last


def compile_networks(objective: nn.Module, how: Literal[True, "graphs"] = True) -> None:
    """Machine code at each network's first call; "graphs": on CUDA its kernels started by one call. Names and weights
    stay as they are."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        raise ConfigError("compile: true needs a C++ compiler, g++ or what CXX names: install one, or leave it out")
    for part in objective.children():
        part.compile(mode="reduce-overhead" if how == "graphs" else None)


def backward(model: nn.Module, objective: Objective, batches: list[Batch]) -> Step:
    """Gradients of the mean loss of the whole global batch, from its micro-batches.

    Where samples are coupled (SimCLR), in two passes (GradCache, arXiv 2101.06983): embed all without gradient,
    score once, then embed each again and push the cached gradient through it.
    """
    if len(batches) == 1:
        result: Step = model(batches[0])
        result.loss.backward()
        return detached([result])
    if not objective.coupled:
        results = []
        for i, batch in enumerate(batches):
            with unsynced(model, i < len(batches) - 1):
                results.append(model(batch))
                (results[-1].loss / len(batches)).backward()
        return detached(results)
    with untracked(objective):  # the second pass moves the running statistics, once
        parts = [model(batch, "embed") for batch in batches]
    rows = tuple(torch.cat(column).requires_grad_() for column in zip(*parts, strict=True))
    result = objective.score(rows, replace(batches[0], views=(), ids=torch.cat([b.ids for b in batches])))
    cached = torch.autograd.grad(result.loss, rows, allow_unused=True)
    at = 0
    for i, batch in enumerate(batches):
        with unsynced(model, i < len(batches) - 1):
            again = model(batch, "embed")
            used = [(row, g[at : at + len(batch.ids)]) for row, g in zip(again, cached, strict=True) if g is not None]
            torch.autograd.backward([row for row, _ in used], [g for _, g in used])
        at += len(batch.ids)
    return detached([result])


def detached(results: list[Step]) -> Step:
    """One step's mean loss, energies and scalars, and its pending rows in order, of its micro-batches'."""
    first = results[0]
    if len(results) == 1:  # without a copy of the energies
        scalars = {k: v.detach() for k, v in first.scalars.items()}
        return replace(
            first, loss=first.loss.detach(), low=first.low.detach(), high=first.high.detach(), scalars=scalars
        )
    return Step(
        loss=torch.stack([r.loss.detach() for r in results]).mean(),
        low=torch.cat([r.low.detach() for r in results]),
        high=torch.cat([r.high.detach() for r in results]),
        scalars={k: torch.stack([r.scalars[k].detach() for r in results]).mean() for k in first.scalars},
        pending={k: torch.cat([r.pending[k] for r in results]) for k in first.pending},
        per_sample={k: torch.cat([r.per_sample[k] for r in results]) for k in first.per_sample},
    )


def unsynced(model: nn.Module, quiet: bool) -> Any:
    """DDP's no_sync, for all but the last micro-batch."""
    return model.no_sync() if quiet and hasattr(model, "no_sync") else nullcontext()  # type: ignore[operator]


def micro_batch(loaded: Loaded, settings: Training, step: int, epoch: int, seed: int, progress: float) -> Batch:
    dtype = torch.float64 if settings.precision == "fp64" else torch.float32
    return Batch(tuple(v.to(dtype) for v in loaded.views), loaded.ids, step, epoch, seed, progress, dtype)


def autocast(world: World, settings: Training) -> torch.autocast:
    return torch.autocast(world.device.type, torch.bfloat16, enabled=settings.precision == "bf16")


def clip(objective: nn.Module, limit: float) -> Tensor:
    """Norm of the whole gradient, 0-d; scaled down to ``limit`` if that is above 0."""
    grads = [p.grad for p in objective.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    if limit:
        torch.nn.utils.clip_grads_with_norm_(objective.parameters(), limit, norm)
    return sharded.whole(norm)


def follow(average: nn.Module, encoder: nn.Module, decay: float) -> None:
    """average <- decay average + (1 - decay) encoder; statistics are copied."""
    with torch.no_grad():
        for a, p in zip(average.parameters(), encoder.parameters(), strict=True):
            a.lerp_(p, 1 - decay)
        for a, b in zip(average.buffers(), encoder.buffers(), strict=True):
            a.copy_(b)


def scalars(
    objective: Objective, result: Step, batch: Batch, norm: Tensor, lr: float, world: World
) -> dict[str, float]:
    """What is logged of a step, averaged over ranks; the only place where a step waits for its device."""
    values = {"train/loss": result.loss, "energy/low": result.low.mean()}
    if result.high.numel():
        seen = torch.isfinite(result.high)
        own = torch.where(seen, result.high, 0).sum(1) / seen.sum(1).clamp(min=1)  # each row's mean of those it has
        values["energy/high"] = own.mean()
        values["energy/gap"] = values["energy/high"] - values["energy/low"]
    values |= result.scalars | objective.diagnostics(result, batch)
    column = torch.stack([sharded.whole(v.detach()).double().reshape(()) for v in values.values()])
    table = world.sum(column) / world.size
    return dict(zip(values, table.tolist(), strict=True)) | {"train/grad_norm": float(norm), "train/lr": lr}


def snapshot_steps(total: int, count: int) -> set[int]:
    """``count`` steps evenly spaced before the end."""
    return {round(total * i / (count + 1)) for i in range(1, count + 1)} - {0}


def restore(found: checkpoint.Found | None, objective: Objective, average: nn.Module | None) -> int:
    """Loads a checkpoint, if there is one, into both. Returns the step to go on from."""
    if found is None:
        return 0
    tensors, state = found
    split = {p: {k[len(p) :]: v for k, v in tensors.items() if k.startswith(p)} for p in ("objective.", "average.")}
    objective.load_state_dict(split["objective."])
    if average is not None:
        average.load_state_dict(split["average."])
    return int(state["step"])


def whole(
    objective: Objective, average: nn.Module | None, optimiser: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Named tensors of the objective, of its average and of the optimiser, and its numbers. Called on all ranks
    together."""
    tensors = {f"objective.{k}": v for k, v in objective.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    moments, numbers = checkpoint.pack_optimiser(optimiser)
    return {k: sharded.whole(v) for k, v in (tensors | moments).items()}, numbers


def store(
    out: Path,
    step: int,
    tensors: dict[str, Tensor],
    numbers: dict[str, Any],
    settings: Training,
    seed: int,
    keep: int,
) -> None:
    """Writes everything that the rest of the training depends on; ``numbers``: the optimiser's."""
    state = {
        "seed": seed,
        "position": step * settings.batch,
        "optimiser": numbers,
        "settings": settings.model_dump(mode="json", exclude={"place"}),
        "torch": str(torch.__version__),
    }
    checkpoint.save(out / "checkpoints", step, tensors, state, keep)
