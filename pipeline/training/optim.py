"""Optimisers over named parameters, and the learning rate as a function of the step alone."""

import math

import torch
from torch import nn

from pipeline.settings.training import SGD, Training


def build(objective: nn.Module, settings: Training) -> torch.optim.Optimizer:
    """SGD or AdamW over the parameters that train; biases and norms (one dimension or less) undecayed if so set."""
    trained = [p for p in objective.parameters() if p.requires_grad]
    chosen = settings.optimiser
    groups = [
        {"params": [p for p in trained if p.ndim > 1 or chosen.decay_norms], "weight_decay": chosen.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1 and not chosen.decay_norms], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    lr = settings.peak_lr()
    if isinstance(chosen, SGD):
        return torch.optim.SGD(groups, lr=lr, momentum=chosen.momentum, nesterov=chosen.nesterov)
    return torch.optim.AdamW(groups, lr=lr)


def rate(settings: Training, step: int, total: int, steps_per_epoch: int) -> float:
    """Learning rate of a step: linear warm-up, then constant or a half cosine to 0 (arXiv 1608.03983)."""
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    peak = settings.peak_lr()
    if step < warmup:
        return peak * (step + 1) / warmup
    if settings.schedule == "constant":
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
