"""Energy nets: p(x) proportional to exp(-E(x)) over binary states x [B, D], the pixels of images one after another.

Where v is given, the hidden units of a restricted Boltzmann machine are independent, so that they are summed out in
closed form; where there are few of them, or few pixels, so is the partition function.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, softplus
from torch.nn.utils.parametrizations import spectral_norm

from pipeline import keyed
from pipeline.image import Image
from pipeline.nets import seeded, trunks
from pipeline.nets.flips import hidden_change, recompute
from pipeline.samplers import ais, gibbs
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


def chances(visible: int, means: Tensor | None) -> Tensor:
    """How often each pixel is one, [D]: one half where nothing is known of them."""
    return torch.full((visible,), 0.5) if means is None else means.float().flatten()


class EnergyNet(nn.Module, ABC):
    """``visible``: pixels D; ``features``: width of what `forward` makes of images; ``bits``: units whose states are
    gone through for the partition function; ``centred``: whether it follows the means of its hidden units;
    ``spectral``: layers whose weights are divided by their largest singular values."""

    visible: int
    features: int
    bits: int
    centred = False
    spectral: Sequence[Any] = ()

    def follow(self) -> None:
        """Follows the singular values of weights that have changed, by one step of the power iteration each."""

    @abstractmethod
    def energy(self, x: Tensor) -> Tensor:
        """Energies of states [B, D] -> [B]."""

    def energy_and_hidden(self, x: Tensor, half: bool = False) -> tuple[Tensor, Tensor]:
        """The same, and the probabilities of the hidden units [B, H] without a gradient; H is 0 where there are none.
        ``half``: products of binary states may be in bf16."""
        return self.energy(x), x.new_empty(len(x), 0)

    def every_energy(self) -> Tensor:
        """Energies of all 2^bits states, in order, so that log Z = logsumexp(-E): [2^bits]."""
        return torch.cat([self.energy(states) for states in every_state(self.bits, next(self.parameters()))])

    def log_partition(self) -> Tensor:
        """log Z, 0-d, by going through all states."""
        return self.every_energy().neg().logsumexp(0)

    def flips(self, x: Tensor) -> Tensor:
        """E(x with pixel i flipped) - E(x) of states [B, D] -> [B, D]: here by as many energies, `CHUNK` at a time, of
        which a backward pass computes each chunk again."""
        size = max(1, CHUNK // len(x))
        parts = [
            recompute(lambda *_, pixels=pixels: self._flips(x, pixels), *self.parameters())
            for pixels in torch.arange(x.shape[1], device=x.device).split(size)
        ]
        return torch.cat(parts, 1) - self.energy(x)[:, None]

    def _flips(self, x: Tensor, pixels: Tensor) -> Tensor:
        """Energies of states [B, D] with each of ``pixels`` [n] flipped -> [B, n]."""
        flipped = x[:, None].repeat(1, len(pixels), 1)
        flipped[:, torch.arange(len(pixels)), pixels] = 1 - x[:, pixels]
        return self.energy(flipped.flatten(0, 1)).view(len(x), len(pixels))


class Energy(EnergyNet):
    """E(x) = w^T trunk(x), for any trunk, which is given normalised images; a constant changes no density. ``cone``:
    E(x) + sqrt(D) || x - m ||, with m the mean image."""

    mean: Tensor

    def __init__(self, settings: settings.Energy, image: Image, seed: int, means: Tensor | None = None):
        super().__init__()
        self.cone = math.sqrt(math.prod(image.shape)) if settings.base == "cone" else 0.0
        if self.cone:
            self.register_buffer("mean", chances(math.prod(image.shape), means))
        self.image, self.visible = image, math.prod(image.shape)
        self.bits = self.visible
        self.trunk = trunks.build(settings.trunk, image, None, seed)
        self.features = self.trunk.features
        self.head = nn.Linear(self.features, 1, bias=False)
        layers = [part for part in self.trunk.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
        self.spectral = [spectral_norm(layer) for layer in layers if settings.spectral_norm]

    def train(self, mode: bool = True) -> "Energy":
        """Singular values are followed in `follow` alone, once a step: energies of a step are all of the same net."""
        super().train(mode)
        for layer in self.spectral:
            layer.parametrizations.weight.eval()
        return self

    @torch.no_grad()
    def follow(self) -> None:
        for layer in self.spectral:
            layer.parametrizations.weight.train()
            layer.weight  # noqa: B018 - a step of the power iteration is taken where the weight is computed
            layer.parametrizations.weight.eval()

    def energy(self, x: Tensor) -> Tensor:
        energies = self.head(self(x.view(-1, *self.image.shape)))[:, 0]
        return energies + self.cone * (x - self.mean).norm(dim=1) if self.cone else energies

    def forward(self, images: Tensor) -> Tensor:
        """Images in [0, 1], [B, C, H, W] -> the trunk's features [B, features]."""
        return self.trunk(self.image.normalise(images))


class Boltzmann(EnergyNet):
    """Fully visible Boltzmann machine (Ackley, Hinton & Sejnowski 1985): E(x) = - b^T x - 1/2 x^T J x, with J the
    symmetric part of ``weight`` without its diagonal."""

    def __init__(self, visible: int, means: Tensor | None = None):
        super().__init__()
        self.visible = self.features = self.bits = visible
        self.weight = nn.Parameter(0.01 * torch.randn(visible, visible))
        self.visible_bias = nn.Parameter(chances(visible, means).clamp(RAREST, 1 - RAREST).logit())

    def coupling(self) -> Tensor:
        """J, [D, D]."""
        weight = self.weight - self.weight.diag().diag()
        return (weight + weight.T) / 2

    def field(self, x: Tensor) -> Tensor:
        """States [B, D] -> b + J x, [B, D]: log-odds of each pixel given the others."""
        return linear(x, self.coupling(), self.visible_bias)

    def energy(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        return -(x * (self.field(x) + self.visible_bias)).sum(1) / 2

    def flips(self, x: Tensor) -> Tensor:
        return (2 * x - 1) * self.field(x)

    @torch.no_grad()
    def gibbs(self, x: Tensor, keys: np.ndarray, half: bool = False) -> Tensor:
        """One sweep of states [B, D] of any dtype: each pixel in turn given all others; the D numbers drawn for a row
        are those of its key, uint64 [B]."""
        coupling, dtype = self.coupling(), x.dtype
        x = x.to(coupling.dtype, copy=True)
        draws = uniforms(keys, self.visible, x)
        for i in range(self.visible):
            x[:, i] = draws[:, i] < torch.sigmoid(x @ coupling[i] + self.visible_bias[i])
        return x.to(dtype)

    def forward(self, images: Tensor) -> Tensor:
        """Images in [0, 1], [B, C, H, W] -> the log-odds of each pixel given the others, [B, D]."""
        return self.field(images.flatten(1))


class FreeEnergy(torch.autograd.Function):
    """Of states v [B, D] of zeros and ones: - (v - d)^T b - sum_j (softplus(a_j) - a_j m_j), [B], with a the log-odds
    c + W^T (v - d); and sigmoid(a), [B, H], which has no gradient of its own. ``half``: the products of states with W,
    and with the gradient of a, are in bf16; nothing else is."""

    @staticmethod
    def forward(ctx, v, weight, visible_bias, hidden_bias, visible_offset, hidden_offset, half):
        a = gibbs.product(v, weight, hidden_bias - visible_offset @ weight, half=half)
        hidden, pixels = a.sigmoid(), v.to(a.dtype)
        linear = pixels @ visible_bias - visible_offset @ visible_bias
        energy = a @ hidden_offset - softplus(a).sum(1) - linear
        ctx.half = half
        ctx.save_for_backward(v, pixels, hidden, visible_offset, hidden_offset)
        ctx.mark_non_differentiable(hidden)
        return energy, hidden

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        v, pixels, hidden, visible_offset, hidden_offset = ctx.saved_tensors
        with torch.autocast(hidden.device.type, enabled=False):
            of_a = (hidden_offset - hidden).mul_(grads[0][:, None])
            of_hidden = of_a.sum(0)
            of_offset = torch.outer(-visible_offset, of_hidden)
            of_weight = gibbs.product(v, of_a, of_offset, of_columns=True, half=ctx.half)
            of_visible = visible_offset * grads[0].sum() - grads[0] @ pixels
        return None, of_weight, of_visible, of_hidden, None, None, None


class RBM(EnergyNet):
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
        self.bits = min(visible, settings.hidden)
        mean = chances(visible, means)
        self.weight = nn.Parameter(0.01 * torch.randn(visible, settings.hidden))
        self.visible_bias = nn.Parameter(mean.clamp(RAREST, 1 - RAREST).logit())
        self.hidden_bias = nn.Parameter(torch.zeros(settings.hidden))
        self.register_buffer("visible_offset", mean * self.centred)
        self.register_buffer("hidden_offset", torch.full((settings.hidden,), 0.5 * self.centred))

    def activations(self, v: Tensor) -> Tensor:
        """States [B, D] -> c + W^T (v - d), [B, H]: log-odds of the hidden units."""
        return (v - self.visible_offset) @ self.weight + self.hidden_bias

    def hidden(self, v: Tensor) -> Tensor:
        """States or means of pixels [B, D] -> probabilities of the hidden units, [B, H]."""
        return torch.sigmoid(self.activations(v))

    @torch.no_grad()
    def log_odds(self, v: Tensor, half: bool = False) -> Tensor:
        """The same as `activations`, of states of zeros and ones alone, in less time and without a gradient."""
        return gibbs.product(v, self.weight, self.hidden_bias - self.visible_offset @ self.weight, half=half)

    def field(self, h: Tensor) -> Tensor:
        """Hidden states [B, H] -> b + W (h - m), [B, D]: log-odds of the pixels."""
        return linear(h - self.hidden_offset, self.weight, self.visible_bias)

    def energy(self, v: Tensor) -> Tensor:
        """Free energies - log sum_h exp(-E(v, h)) of states [B, D] -> [B]."""
        return self.energy_and_hidden(v)[0]

    def energy_and_hidden(self, v: Tensor, half: bool = False) -> tuple[Tensor, Tensor]:
        parameters = self.weight, self.visible_bias, self.hidden_bias, self.visible_offset, self.hidden_offset
        return FreeEnergy.apply(v, *parameters, half)  # type: ignore[return-value]

    def hidden_energy(self, h: Tensor) -> Tensor:
        """Free energies - log sum_v exp(-E(v, h)) of hidden states [B, H] -> [B]."""
        g = self.field(h)
        return -(h - self.hidden_offset) @ self.hidden_bias - (softplus(g) - g * self.visible_offset).sum(1)

    def every_energy(self) -> Tensor:
        """Free energies of all states of the fewer of pixels and hidden units, [2^bits]."""
        if self.visible <= self.features:
            return super().every_energy()
        return torch.cat([self.hidden_energy(states) for states in every_state(self.bits, self.weight)])

    def flips(self, v: Tensor) -> Tensor:
        """c + W^T (v - d) once, and then for each flip a row of W more or less: no product."""
        signs = 1 - 2 * v  # what a flip adds to a pixel
        linear = signs * (self.visible_bias - self.weight @ self.hidden_offset)
        return -linear - hidden_change(self.activations(v), signs, self.weight)

    @torch.no_grad()
    def gibbs(self, v: Tensor, keys: np.ndarray, half: bool = False) -> Tensor:
        """One sweep of states [B, D] of any dtype: the hidden units given the pixels, then the pixels given the hidden
        units; the numbers drawn for a row are those of its key, uint64 [B]: first H for the hidden units, then D."""
        h = gibbs.bernoulli(self.log_odds(v, half).sigmoid(), keys)
        field = gibbs.dense(h, self.weight.T, self.visible_bias - self.weight @ self.hidden_offset, half)
        return gibbs.bernoulli(field.sigmoid(), keys, skip=self.features).to(v.dtype)

    @torch.no_grad()
    def uncentred(self) -> ais.RBM:
        """The same density by parameters without offsets."""
        visible_bias = self.visible_bias - self.weight @ self.hidden_offset
        return ais.RBM(self.weight.detach(), visible_bias, self.hidden_bias - self.visible_offset @ self.weight)

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
        if isinstance(net, settings.Energy):
            return Energy(net, image, seed, means)
        visible = math.prod(image.shape)
        return RBM(net, visible, means) if isinstance(net, settings.RBM) else Boltzmann(visible, means)
