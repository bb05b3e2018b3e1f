"""What features tell without labels, in float64."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def rankme(features: Tensor) -> float:
    """RankMe (Garrido et al. 2023, arXiv 2210.02885): exp of the entropy of the singular values of [n, D], between 1
    and D. In float64: in float32 a collapsed spectrum looks fuller than it is."""
    x = features.double()
    singular = torch.linalg.eigvalsh(x.T @ x).clamp(min=0).sqrt()
    p = singular / singular.sum().clamp(min=1e-300) + 1e-7
    return float(torch.exp(-(p * p.log()).sum()))


def spread(features: Tensor) -> float:
    """Mean deviation over the dimensions of the unit rows of [n, D]: near 1/sqrt(D) if healthy, 0 if collapsed."""
    return float(normalize(features.double(), dim=1).std(0, correction=0).mean())
