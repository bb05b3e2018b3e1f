"""Energy nets: p(x) proportional to exp(-E(x)) over binary states x [B, D], the pixels of images one after another.

Where v is given, the hidden units of a restricted Boltzmann machine are independent, so that they are summed out in
closed form; where there are few of them, or few pixels, so is the partition function.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from pipeline import keyed
from pipeline.image import Image
from pipeline.nets import seeded
from pipeline.settings import nets as settings
from pipeline.tensors import send

BITS = 22
"""Units at most whose states are all gone through."""
CHUNK = 1 << 14
"""States of an enumeration that are in memory at a time."""
RAREST = 1e-3
"""Least chance of a pixel that is taken for its first bias: one that is never set in a sample may be elsewhere."""


def every_state(bits: int, like: Tensor) -> Iterator[Tensor]:
    """All 2^bits binary states in order, in chunks [n, bits] of the dtype and device of ``like``."""
    places = torch.arange(bits, device=like.device)
    for start in range(0, 1 << bits, CHUNK):
        numbers = torch.arange(start, min(start + CHUNK, 1 << bits), device=like.device)
        yield (numbers[:, None] >> places & 1).to(like.dtype)


def uniforms(keys: np.ndarray, count: int, like: Tensor) -> Tensor:
    """``count`` numbers in [0, 1) for each of the keys, uint64 [B] -> [B, count]."""
    return send(keyed.uniform_of(keys, count), like.device).to(like.dtype)


class RBM(nn.Module):
    """Restricted Boltzmann machine, centred (Melchior, Fischer & Wiskott 2016, arXiv 1311.1354, eq. 3):

    E(v, h) = - (v - d)^T b - (h - m)^T c - (v - d)^T W (h - m), with d and m the means of pixels and hidden units.

    d is what the pixels are at the start; m follows the hidden units of data (`recentre`).
    """

    visible_offset: Tensor
    hidden_offset: Tensor

    def __init__(self, settings: settings.RBM, visible: int, means: Tensor | None = None):
        super().__init__()
        self.visible, self.features, self.offset_rate = visible, settings.hidden, settings.offset_rate
        self.centred = settings.centred
        chances = torch.full((visible,), 0.5) if means is None else means.float().flatten()
        self.weight = nn.Parameter(0.01 * torch.randn(visible, settings.hidden))
        self.visible_bias = nn.Parameter(chances.clamp(RAREST, 1 - RAREST).logit())
        self.hidden_bias = nn.Parameter(torch.zeros(settings.hidden))
        self.register_buffer("visible_offset", chances * self.centred)
        self.register_buffer("hidden_offset", torch.full((settings.hidden,), 0.5 * self.centred))

    def activations(self, v: Tensor) -> Tensor:
        """States [B, D] -> c + W^T (v - d), [B, H]: log-odds of the hidden units."""
        return (v - self.visible_offset) @ self.weight + self.hidden_bias

    def hidden(self, v: Tensor) -> Tensor:
        """States or means of pixels [B, D] -> probabilities of the hidden units, [B, H]."""
        return torch.sigmoid(self.activations(v))

    def field(self, h: Tensor) -> Tensor:
        """Hidden states [B, H] -> b + W (h - m), [B, D]: log-odds of the pixels."""
        return linear(h - self.hidden_offset, self.weight, self.visible_bias)

    def energy(self, v: Tensor) -> Tensor:
        """Free energies - log sum_h exp(-E(v, h)) of states [B, D] -> [B]."""
        a = self.activations(v)
        return -(v - self.visible_offset) @ self.visible_bias - (softplus(a) - a * self.hidden_offset).sum(1)

    def hidden_energy(self, h: Tensor) -> Tensor:
        """Free energies - log sum_v exp(-E(v, h)) of hidden states [B, H] -> [B]."""
        g = self.field(h)
        return -(h - self.hidden_offset) @ self.hidden_bias - (softplus(g) - g * self.visible_offset).sum(1)

    @property
    def bits(self) -> int:
        """Units whose states are gone through for the partition function: the fewer of pixels and hidden units."""
        return min(self.visible, self.features)

    def every_energy(self) -> Tensor:
        """Free energies whose - logsumexp(-E) is - log Z, of all states of the fewer units: [2^bits]."""
        energy = self.energy if self.visible <= self.features else self.hidden_energy
        return torch.cat([energy(states) for states in every_state(self.bits, self.weight)])

    def log_partition(self) -> Tensor:
        """log Z, 0-d, over all states of the fewer units, at most 2^BITS."""
        return self.every_energy().neg().logsumexp(0)

    def flips(self, v: Tensor) -> Tensor:
        """E(v with pixel i flipped) - E(v) of states [B, D] -> [B, D]."""
        a = self.activations(v)
        signs = 1 - 2 * v  # what a flip adds to a pixel
        moved = a[:, None] + signs[:, :, None] * self.weight
        hidden = (softplus(moved) - softplus(a)[:, None]).sum(2)
        return -signs * (self.visible_bias - self.weight @ self.hidden_offset) - hidden

    @torch.no_grad()
    def gibbs(self, v: Tensor, keys: np.ndarray) -> Tensor:
        """One sweep of states [B, D]: the hidden units given the pixels, then the pixels given the hidden units; the
        numbers drawn for a row are those of its key, uint64 [B]: first H for the hidden units, then D."""
        draws = uniforms(keys, self.features + self.visible, v)
        h = (draws[:, : self.features] < self.hidden(v)).to(v.dtype)
        return (draws[:, self.features :] < torch.sigmoid(self.field(h))).to(v.dtype)

    @torch.no_grad()
    def recentre(self, hidden: Tensor) -> None:
        """Moves m towards the mean of data's hidden units [H]; b moves with it, so that no probability changes."""
        step = self.offset_rate * (hidden - self.hidden_offset)
        self.hidden_offset += step
        self.visible_bias += self.weight @ step

    def forward(self, images: Tensor) -> Tensor:
        """Images in [0, 1], [B, C, H, W] -> probabilities of the hidden units, [B, features]."""
        return self.hidden(images.flatten(1))


def build(net: Any, image: Image, seed: int = 0, means: Tensor | None = None) -> Any:
    """The energy net that the settings name, for images of this shape, with ``means`` of the training images' pixels
    in [0, 1], [C, H, W]. Its first weights are a function of (seed, settings, means) alone."""
    with seeded(seed, "init", "energy"):
        return RBM(net, image.channels * image.side**2, means)
