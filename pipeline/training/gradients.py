"""Computes the gradient of the global batch's loss from several micro-batches, in one pass or two; and clips it."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.nets.norm import untracked
from pipeline.objectives.base import Batch, Objective, Step
from pipeline.training import sharded


def one_pass(model: nn.Module, objective: Objective, batches: list[Batch]) -> Step:
    """Accumulates the micro-batches' gradients, for losses that do not couple samples: the global loss is their
    mean."""
    results = []
    for i, batch in enumerate(batches):
        with unsynced(model, i < len(batches) - 1):
            results.append(model(replace(batch, piece=(i, len(batches)))))
            (results[-1].loss / len(batches)).backward()
    return mean(results)


def two_passes(model: nn.Module, objective: Objective, batches: list[Batch]) -> Step:
    """Accumulates gradients for losses that couple samples (GradCache, arXiv 2101.06983): it embeds all micro-batches
    without gradient, computes the loss and its gradient by the embeddings, then embeds each micro-batch again and
    backpropagates that gradient."""
    with untracked(objective):  # running statistics are updated in the second pass only
        parts = [model(batch, "embed") for batch in batches]
    rows = tuple(torch.cat(column).requires_grad_() for column in zip(*parts, strict=True))
    result = objective.score(rows, replace(batches[0], views=(), ids=torch.cat([b.ids for b in batches])))
    cached = torch.autograd.grad(result.loss, rows, allow_unused=True)
    start = 0
    for i, batch in enumerate(batches):
        end = start + len(batch.ids)
        with unsynced(model, i < len(batches) - 1):
            again = model(batch, "embed")
            used = [(row, g[start:end]) for row, g in zip(again, cached, strict=True) if g is not None]
            torch.autograd.backward([row for row, _ in used], [g for _, g in used])
        start = end
    return detached(result)


def detached(step: Step) -> Step:
    """The step with detached tensors, which are not copied."""
    scalars = {k: v.detach() for k, v in step.scalars.items()}
    return replace(step, loss=step.loss.detach(), low=step.low.detach(), high=step.high.detach(), scalars=scalars)


def mean(steps: list[Step]) -> Step:
    """Merges the micro-batches' steps into one, detached: means of the losses and scalars; energies and pending rows
    concatenated."""
    return Step(
        loss=torch.stack([s.loss.detach() for s in steps]).mean(),
        low=torch.cat([s.low.detach() for s in steps]),
        high=torch.cat([s.high.detach() for s in steps]),
        scalars={k: torch.stack([s.scalars[k].detach() for s in steps]).mean() for k in steps[0].scalars},
        pending={k: torch.cat([s.pending[k] for s in steps]) for k in steps[0].pending},
        per_sample={k: torch.cat([s.per_sample[k] for s in steps]) for k in steps[0].per_sample},
    )


def unsynced(model: nn.Module, quiet: bool) -> Any:
    """DDP's no_sync if ``quiet``, which is so for all micro-batches but the last."""
    return model.no_sync() if quiet and hasattr(model, "no_sync") else nullcontext()  # type: ignore[operator]


def clip(objective: nn.Module, limit: float) -> Tensor:
    """Clips the gradient to the norm ``limit`` (0: not at all). Returns its norm before, over all ranks, 0-d."""
    grads = [p.grad for p in objective.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    if limit:
        torch.nn.utils.clip_grads_with_norm_(objective.parameters(), limit, norm)
    return sharded.full_tensor(norm)
