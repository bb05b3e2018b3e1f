"""Weighted nearest neighbours (Wu et al. 2018, arXiv 1805.01978, sec. 3.4): each votes exp(cosine / T)."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

BLOCK = 256  # queries at a time: BLOCK x bank similarities are held


def neighbours(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosines and places of the k nearest rows of bank [N, D] to each query [n, D] -> [n, k] each, nearest first."""
    bank, queries = normalize(bank.float(), dim=1), normalize(queries.float(), dim=1)
    found = [(part @ bank.T).topk(min(k, len(bank)), dim=1) for part in queries.split(BLOCK)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def classify(bank: Tensor, labels: Tensor, queries: Tensor, k: int, temperature: float) -> Tensor:
    """The class with most votes, [n]; labels [N] are 0..C-1."""
    cosines, places = neighbours(bank, queries, k)
    votes = torch.zeros(len(queries), int(labels.max()) + 1, dtype=torch.float64)
    # Less the largest, so that exp cannot overflow: the same for all classes of a query.
    weights = ((cosines - cosines[:, :1]).double() / temperature).exp()
    return votes.scatter_add_(1, labels[places], weights).argmax(1)
