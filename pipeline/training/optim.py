"""Optimisers over named parameters, and the learning rate as a function of the step alone."""

import inspect
import math
from typing import Any

import torch
from torch import nn

from pipeline.settings.training import LARS as LARSSettings
from pipeline.settings.training import SGD, Training
from pipeline.training import sharded


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rates (You, Gitman & Ginsburg, arXiv 1708.03888), in the form that MoCo v3's code gave them.

    d = g + weight_decay w; d *= trust_coefficient |w| / |d| where both are above 0; v <- momentum v + d;
    w <- w - lr v. Groups with ``adapt`` false (biases and norms) take d = g.
    """

    def __init__(self, groups: Any, lr: float, momentum: float, trust_coefficient: float):
        defaults = {"lr": lr, "momentum": momentum, "trust_coefficient": trust_coefficient}
        super().__init__(groups, defaults | {"weight_decay": 0.0, "adapt": True})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                d = p.grad
                if group["adapt"]:
                    d = d.add(p, alpha=group["weight_decay"])
                    weight, length = p.norm(), d.norm()
                    trust = group["trust_coefficient"] * weight / length
                    ratio = torch.where((weight > 0) & (length > 0), trust, 1.0)
                    d = d * ratio.to(d.dtype)
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                velocity = state["momentum_buffer"].mul_(group["momentum"]).add_(d)
                p.add_(velocity, alpha=-group["lr"])


def build(objective: nn.Module, settings: Training) -> torch.optim.Optimizer:
    """SGD, LARS or AdamW over the parameters that train; biases and norms (one dimension or less) undecayed if so
    set, and always under LARS."""
    trained = [p for p in objective.parameters() if p.requires_grad]
    chosen = settings.optimiser
    spared = isinstance(chosen, LARSSettings) or not chosen.decay_norms
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim > 1 or not spared], "weight_decay": chosen.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1 and spared], "weight_decay": 0.0},
    ]
    if isinstance(chosen, LARSSettings):
        groups[1]["adapt"] = False
    groups = [g for g in groups if g["params"]]
    lr = settings.peak_lr()
    # On a CPU fused steps gain nothing, and torch has none for shards.
    fused = trained[0].is_cuda and not sharded.is_sharded(trained[0])
    if isinstance(chosen, LARSSettings):
        return eager(LARS)(groups, lr, chosen.momentum, chosen.trust_coefficient)
    if isinstance(chosen, SGD):
        return eager(torch.optim.SGD)(groups, lr=lr, momentum=chosen.momentum, nesterov=chosen.nesterov, fused=fused)
    return eager(torch.optim.AdamW)(groups, lr=lr, fused=fused)


def eager(kind: Any) -> Any:
    """The same optimiser without torch's marks for its compiler around the methods: they import the whole compiler,
    which takes as long as torch itself, in every process that trains."""
    marked = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    plain = {name: inspect.unwrap(getattr(kind, name)) for name in marked}
    return type(kind.__name__, (kind,), plain | {"step": torch.no_grad()(inspect.unwrap(kind.step))})


def set_rate(
    optimiser: torch.optim.Optimizer, settings: Training, step: int, total: int, steps_per_epoch: int
) -> float:
    """Gives the optimiser the learning rate of a step, which it returns."""
    lr = rate(settings, step, total, steps_per_epoch)
    for group in optimiser.param_groups:
        group["lr"] = lr
    return lr


def rate(settings: Training, step: int, total: int, steps_per_epoch: int) -> float:
    """Learning rate of a step: linear warm-up, then constant, a cosine (arXiv 1608.03983), or drops to a tenth."""
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    peak = settings.peak_lr()
    if step < warmup:
        return peak * (step + 1) / warmup
    if settings.schedule == "constant":
        return peak
    if settings.schedule == "steps":
        return peak * 0.1 ** sum(step >= share * total for share in settings.lr_drops)
    half = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
    return peak * (settings.min_lr_ratio + (1 - settings.min_lr_ratio) * half)
