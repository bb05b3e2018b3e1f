"""Image features from sparse codes (Coates & Ng 2011): contrast-normalised patches are whitened and encoded, positive
and negative parts of the codes separated, and summed over the cells of a grid."""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.settings.sparse import Coding
from pipeline.sparse import lista, solvers

CACHED, HELD = 1 << 21, 1 << 25  # values of code maps computed at a time, to fit in a CPU's cache, and in memory


def normalise(patches: Tensor, contrast: float) -> Tensor:
    """Contrast normalisation of patches [N, p] with pixels in [0, 1]: (x - mean) / sqrt(variance + contrast / 255^2),
    with each patch's own mean and unbiased variance."""
    variance, mean = torch.var_mean(patches, 1, keepdim=True)
    return (patches - mean) / (variance + contrast / 255**2).sqrt()


def unit(signals: Tensor) -> tuple[Tensor, Tensor]:
    """Signals [N, p] scaled to norm 1, and their norms [N, 1]. Zero signals stay zero."""
    norm = signals.norm(dim=1, keepdim=True)
    return signals / norm.clamp_min(torch.finfo(norm.dtype).tiny), norm


class Whitening(NamedTuple):
    """ZCA whitening: subtracts ``mean`` [p] and multiplies by ``zca`` [p, p]."""

    mean: Tensor
    zca: Tensor

    def __call__(self, signals: Tensor) -> Tensor:
        """Whitens signals [N, p] and scales them to norm 1."""
        return unit((signals - self.mean.to(signals)) @ self.zca.to(signals))[0]


def whitening(signals: Tensor, ridge: float) -> Whitening:
    """The mean [p] of signals [N, p] and their ZCA matrix V (L + ridge)^-1/2 V' [p, p], with the covariance V L V', in
    float64."""
    x = signals.double()
    mean = x.mean(0)
    values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / max(1, len(x) - 1))
    return Whitening(mean, (vectors / (values.clamp_min(0) + ridge).sqrt()) @ vectors.T)


class Coder(nn.Module):
    """Encodes whitened signals x with a dictionary, in one of three ways.

    threshold: soft_threshold(D'x, alpha), of Coates & Ng; lasso: the exact code of x / ||x||, times ||x||; lista: a
    trained network's prediction of that. ``mean`` [p], ``zca`` [p, p], ``dictionary`` [p, k].
    """

    mean: Tensor
    zca: Tensor
    dictionary: Tensor

    def __init__(self, settings: Coding, mean: Tensor, zca: Tensor, dictionary: Tensor):
        super().__init__()
        for name, value in (("mean", mean), ("zca", zca), ("dictionary", dictionary)):
            self.register_buffer(name, value.detach().float().clone())
        self.settings = settings
        if settings.features == "lista":
            self.lista = lista.build(settings.lista, self.dictionary, settings.penalty)

    def whiten(self, signals: Tensor) -> Tensor:
        return (signals - self.mean) @ self.zca

    def filters(self) -> tuple[Tensor, Tensor]:
        """The filters F [p, k] and bias [k] that combine whitening and dictionary: D'(W (x - mean)) = F'x - bias."""
        folded = self.zca @ self.dictionary
        return folded, self.mean @ folded

    def forward(self, signals: Tensor) -> Tensor:
        """Whitens and encodes signals [N, p] -> codes [N, k]."""
        settings = self.settings
        if settings.features == "threshold":
            folded, bias = self.filters()
            return solvers.soft_threshold(signals @ folded - bias, settings.threshold)
        ones, norm = unit(self.whiten(signals))
        if settings.features == "lista":
            return norm * self.lista(ones)
        return norm * solvers.encode(ones, self.dictionary, settings.penalty, settings.tolerance).z


def split(codes: Tensor) -> Tensor:
    """Separates positive and negative parts: [..., k] -> [..., 2k], max(z, 0) and max(-z, 0)."""
    return torch.cat([codes.clamp_min(0), (-codes).clamp_min(0)], -1)


def patches(images: Tensor, side: int, pad: int, contrast: float) -> Tensor:
    """All contrast-normalised patches of images [B, C, H, W] in [0, 1], row by row -> [B x positions, C side^2]."""
    return normalise(F.unfold(images, side, padding=pad).transpose(1, 2).flatten(0, 1), contrast)


class SparseFeatures(nn.Module):
    """Images [B, C, H, W] in [0, 1] -> features [B, 2 atoms pool^2]: positive and negative parts of the codes of all
    patches, each summed over pool x pool cells."""

    def __init__(self, coder: Coder):
        super().__init__()
        self.coder, self.settings = coder, coder.settings
        self.features = 2 * coder.settings.atoms * coder.settings.pool**2

    def forward(self, images: Tensor) -> Tensor:
        positions = (images.shape[-1] + 2 * self.settings.pad - self.settings.patch + 1) ** 2
        fits = CACHED if images.device.type == "cpu" and self.settings.features == "threshold" else HELD
        at_once = max(1, fits // (positions * max(self.coder.dictionary.shape)))
        return torch.cat([self._features(part) for part in images.split(at_once)])

    def _features(self, images: Tensor) -> Tensor:
        maps = self._responses(images) if self.settings.features == "threshold" else self._codes(images)
        return torch.stack([self._pooled(maps.clamp_min(0)), self._pooled((-maps).clamp_min(0))], 1).flatten(1)

    def _pooled(self, maps: Tensor) -> Tensor:
        """Sums maps over cells: [B, k, h, w] -> [B, k, pool, pool]. Edges of cells are rounded to whole positions."""
        rows, columns = (_edges(side, self.settings.pool) for side in maps.shape[-2:])
        strips = [maps[..., a:b, :].sum(-2) for a, b in rows]
        return torch.stack([torch.stack([s[..., a:b].sum(-1) for a, b in columns], -1) for s in strips], -2)

    def _codes(self, images: Tensor) -> Tensor:
        """The codes of every patch, as maps [B, k, h, w]."""
        size, pad = self.settings.patch, self.settings.pad
        height, width = (side + 2 * pad - size + 1 for side in images.shape[-2:])
        z = self.coder(patches(images, size, pad, self.settings.contrast))
        return z.view(len(images), height, width, -1).permute(0, 3, 1, 2)

    def _responses(self, images: Tensor) -> Tensor:
        """F'x of every contrast-normalised patch x, as maps [B, k, h, w], by one convolution instead of patches.

        F'((x - m 1) / s) = (F - mean F)'x / s, with the patch's own mean m and deviation s.
        """
        size, pad = self.settings.patch, self.settings.pad
        images = F.pad(images, (pad, pad, pad, pad))
        folded, bias = self.coder.filters()
        channels, p = images.shape[1], len(folded)
        kernels = (folded - folded.mean(0)).T.reshape(-1, channels, size, size)
        # Each image is centred first: the variance is a difference of two sums, whose rounding could exceed it.
        images = images - images.mean((1, 2, 3), keepdim=True)
        box = images.new_ones(1, channels, size, size) / p
        mean = F.conv2d(images, box)
        variance = (F.conv2d(images.square(), box) - mean.square()).clamp_min(0) * (p / (p - 1))
        maps = F.conv2d(images, kernels) / (variance + self.settings.contrast / 255**2).sqrt() - bias.view(-1, 1, 1)
        return solvers.soft_threshold(maps, self.settings.threshold)


def _edges(side: int, cells: int) -> list[tuple[int, int]]:
    return list(pairwise(round(i * side / cells) for i in range(cells + 1)))


class CodedFeatures(nn.Module):
    """Images [B, C, H, W] in [0, 1] -> the codes of an encoder's features, positive and negative parts [B, 2 atoms].

    ``encoder`` takes pixels from 0 to 255, as exported encoders do."""

    def __init__(self, encoder: nn.Module, coder: Coder):
        super().__init__()
        self.encoder, self.coder = encoder, coder
        self.features = 2 * coder.settings.atoms

    def forward(self, images: Tensor) -> Tensor:
        return split(self.coder(self.encoder((images * 255).round())))


def blank(settings: Coding, size: int) -> Coder:
    """A coder of signals of dimension ``size`` with uninitialised tensors, for loading weights into."""
    return Coder(settings, torch.zeros(size), torch.eye(size), torch.eye(size, settings.atoms))
