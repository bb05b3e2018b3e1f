"""Builds optimisers over an objective's parameter groups, and sets the learning rate as a function of the step."""

import inspect
import math
from collections import Counter
from typing import Any

import torch

from pipeline.objectives.base import Objective, ParameterGroup
from pipeline.settings.training import LARS as LARSSettings
from pipeline.settings.training import SGD, Optimiser, Training
from pipeline.training import sharded


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You, Gitman & Ginsburg, arXiv 1708.03888), as in the code of MoCo v3.

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


def build(objective: Objective, settings: Training) -> torch.optim.Optimizer:
    """SGD, LARS or AdamW over the objective's parameter groups. Biases and norms (parameters of at most one dimension)
    have no weight decay if so set, and never under LARS."""
    kind, lr = settings.optimiser, settings.peak_lr()
    groups = [half for group in checked_groups(objective) for half in split(group, kind) if half["params"]]
    first = groups[0]["params"][0]
    fused = first.is_cuda and not sharded.is_sharded(first)  # no faster on a CPU, and not supported for shards
    if isinstance(kind, LARSSettings):
        return eager(LARS)(groups, lr, kind.momentum, kind.trust_coefficient)
    if isinstance(kind, SGD):
        return eager(torch.optim.SGD)(groups, lr=lr, momentum=kind.momentum, nesterov=kind.nesterov, fused=fused)
    return eager(torch.optim.AdamW)(groups, lr=lr, fused=fused)


def checked_groups(objective: Objective) -> list[ParameterGroup]:
    """The objective's parameter groups. Raises ValueError where a trained parameter is not in exactly one of them."""
    groups = objective.parameter_groups()
    counts = Counter(id(p) for group in groups for p in group.params)
    wrong = [name for name, p in objective.named_parameters() if counts[id(p)] != p.requires_grad]
    if wrong:
        raise ValueError(
            f"{type(objective).__name__}.parameter_groups: {', '.join(wrong)}: each parameter that trains has to be "
            f"in one group, and no other in any"
        )
    return groups


def split(group: ParameterGroup, kind: Optimiser) -> list[dict[str, Any]]:
    """Splits a group into torch's groups: parameters with weight decay and, where they have none, biases and norms."""
    if isinstance(kind, LARSSettings):
        spare, unadapted = True, {"adapt": False, "lr_scale": group.lr_scale * kind.bias_lr_scale}
    else:
        spare, unadapted = not kind.decay_norms, {}
    decay = kind.weight_decay if group.weight_decay is None else group.weight_decay
    common = {name: getattr(group, name) for name in ("lr_scale", "constant_lr", "frozen_steps")}
    biases = common | {"params": [p for p in group.params if p.ndim <= 1 and spare], "weight_decay": 0.0}
    return [
        common | {"params": [p for p in group.params if p.ndim > 1 or not spare], "weight_decay": decay},
        biases | unadapted,
    ]


def eager(kind: Any) -> Any:
    """The optimiser's class without torch.compile's decorators on its methods, which import the whole compiler: that
    takes as long as importing torch, in every process that trains."""
    marked = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    plain = {name: inspect.unwrap(getattr(kind, name)) for name in marked}
    return type(kind.__name__, (kind,), plain | {"step": torch.no_grad()(inspect.unwrap(kind.step))})


def set_rate(
    optimiser: torch.optim.Optimizer, settings: Training, step: int, total: int, steps_per_epoch: int
) -> float:
    """Sets every group's learning rate for a step. Returns the rate before the groups' scale factors."""
    lr = rate(settings, step, total, steps_per_epoch)
    for group in optimiser.param_groups:
        group["lr"] = (settings.peak_lr() if group["constant_lr"] else lr) * group["lr_scale"]
    return lr


def drop_frozen(optimiser: torch.optim.Optimizer, step: int) -> None:
    """Removes the gradients of the groups that are frozen at a step, so that the optimiser changes neither their
    weights nor their moments."""
    for group in optimiser.param_groups:
        if step < group["frozen_steps"]:
            for p in group["params"]:
                p.grad = None


def rate(settings: Training, step: int, total: int, steps_per_epoch: int) -> float:
    """The learning rate of a step: linear warm-up, then constant; or constant for a share of the steps, then a cosine
    (arXiv 1608.03983) or linear decay; or drops to a tenth."""
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    peak = settings.peak_lr()
    if step < warmup:
        return peak * (step + 1) / warmup
    if settings.schedule == "constant":
        return peak
    if settings.schedule == "steps":
        return peak * 0.1 ** sum(step >= share * total for share in settings.lr_drops)
    held = max(warmup, round(settings.hold * total))
    gone = max(0, step - held) / max(1, total - held)
    left = 1 - gone if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * gone))
    return peak * (settings.min_lr_ratio + (1 - settings.min_lr_ratio) * left)
