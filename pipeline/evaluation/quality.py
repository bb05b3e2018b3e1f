"""Measures of features that need no labels, in float64."""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize


def rankme(features: Tensor) -> float:
    """RankMe (Garrido et al. 2023, arXiv 2210.02885, eq. 1): exp of the entropy of the min(n, D) singular values of
    [n, D], from 1 to as many. In float64: in float32 a collapsed spectrum looks fuller than it is. Compare only at
    equal n >= 10 D."""
    x = features.double()
    x = x if len(x) >= x.shape[1] else x.T
    singular = torch.linalg.eigvalsh(x.T @ x).clamp(min=0).sqrt()
    p = singular / singular.sum().clamp(min=1e-300) + 1e-7
    return float(torch.exp(-(p * p.log()).sum()))


def spread(features: Tensor) -> float:
    """Mean deviation over the dimensions of the unit rows of [n, D]: near 1/sqrt(D) if healthy, 0 if collapsed
    (Chen & He 2021, arXiv 2011.10566, sec. 4.1)."""
    return float(normalize(features.double(), dim=1).std(0, correction=0).mean())


def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance of the unit rows of a positive pair, [n, D] each (Wang & Isola 2020, arXiv 2005.10242)."""
    return float((normalize(first.double(), dim=1) - normalize(second.double(), dim=1)).square().sum(1).mean())


def uniformity(features: Tensor) -> float:
    """log mean exp(-2 ||x - y||^2) over all pairs of different unit rows of [n, D] (the same paper)."""
    distances = torch.pdist(normalize(features.double(), dim=1))
    return float(distances.square().mul(-2).logsumexp(0)) - math.log(len(distances))
