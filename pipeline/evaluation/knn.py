"""Weighted nearest neighbours (Wu et al. 2018, arXiv 1805.01978, sec. 3.4): each votes exp(cosine / T)."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

BLOCK = 256  # queries at a time: BLOCK x bank similarities are held
SPARE = 32  # candidates beyond k that products find and differences rank


def neighbours(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosines (float64) and places of the k nearest rows of bank [N, D] to each query [n, D] -> [n, k] each, nearest
    first, of equals the earlier. In float64, and ranked by squared differences: rows of a nearly collapsed encoder
    are apart by less than a cosine near 1 can tell."""
    bank, queries = normalize(bank.double(), dim=1), normalize(queries.double(), dim=1)
    k = min(k, len(bank))
    parts = [_nearest(bank, part, k) for part in queries.split(BLOCK)]
    return torch.cat([f[0] for f in parts]), torch.cat([f[1] for f in parts])


def _nearest(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    places = (queries @ bank.T).topk(min(k + SPARE, len(bank)), dim=1, sorted=False).indices.sort(1).values
    distances = bank[places].sub_(queries[:, None]).square_().sum(2)
    order = distances.argsort(dim=1, stable=True)[:, :k]
    return 1 - 0.5 * distances.gather(1, order), places.gather(1, order)


def classify(bank: Tensor, labels: Tensor, queries: Tensor, k: int, temperature: float) -> Tensor:
    """The class with most votes, [n]; labels [N] are 0..C-1."""
    cosines, places = neighbours(bank, queries, k)
    votes = cosines.new_zeros(len(queries), int(labels.max()) + 1)
    # Less the largest, so that exp cannot overflow: the same for all classes of a query.
    weights = ((cosines - cosines[:, :1]) / temperature).exp()
    return votes.scatter_add_(1, labels[places], weights).argmax(1)
