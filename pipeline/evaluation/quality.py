"""What features tell without a probe, in float64; and an encoder's own, while it learns."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from pipeline import keyed
from pipeline.data.index import Shards
from pipeline.data.loader import images
from pipeline.errors import DataError
from pipeline.evaluation.features import BATCH
from pipeline.evaluation.knn import classify
from pipeline.lines import say

if TYPE_CHECKING:
    from pipeline.image import Image

HELD = 1 << 28  # bytes of those images that are kept decoded
MOST, LEAST = 8192, 100
"""Images that an encoder is judged on while it trains; under LEAST nothing is said."""


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


def alignment(one: Tensor, other: Tensor) -> float:
    """Mean squared distance of the unit rows of a positive pair, [n, D] each (Wang & Isola 2020, arXiv 2005.10242)."""
    return float((normalize(one.double(), dim=1) - normalize(other.double(), dim=1)).square().sum(1).mean())


def uniformity(features: Tensor) -> float:
    """log mean exp(-2 ||x - y||^2) over all pairs of different unit rows of [n, D] (the same paper)."""
    distances = torch.pdist(normalize(features.double(), dim=1))
    return float(distances.square().mul(-2).logsumexp(0)) - math.log(len(distances))


def judge(
    shards: Shards, image: "Image", used: int, budget: int, seed: int
) -> Callable[[nn.Module], dict[str, float]] | None:
    """Scalars of a trunk while it learns: RankMe of its features, and the share of a fifth of the images whose class
    their nearest neighbours in the rest name (k 20, T 0.07).

    The images are a fixed draw of the training split, at most ``budget``: those past the ``used`` ones that are
    trained on, if there are enough. Their labels are used here and nowhere else in a training; without labels there is
    no such share. None where there are too few images to say anything; no scalars where one cannot be read.
    """
    start = used if shards.n - used >= min(MOST, budget) else 0
    count = min(MOST, budget, shards.n - start)
    if count < LEAST:
        return None
    chosen = start + keyed.permute(np.arange(count), shards.n - start, seed, "judged")
    labels = torch.from_numpy(shards.labels[chosen])
    fits = count * image.channels * image.side**2 <= HELD
    held: list[Tensor] = []

    def parts() -> Iterator[Tensor]:
        """The images, uint8 [<= BATCH, C, S, S] at a time; kept where they fit."""
        for at, ids in enumerate(np.split(chosen, range(BATCH, count, BATCH))):
            if len(held) <= at:
                part = images(shards, ids, image.side)
                if not fits:
                    yield part
                    continue
                held.append(part)
            yield held[at]

    @torch.no_grad()
    def scalars(trunk: nn.Module) -> dict[str, float]:
        # A copy, so that neither its mode nor its statistics are touched.
        still: Any = copy.deepcopy(trunk).float().eval()
        still.to(memory_format=torch.channels_last)
        device = next(still.parameters()).device
        try:
            rows = torch.cat([still(image.normalise(x.to(device).float() / 255)).float() for x in parts()])
        except DataError as error:  # a training forgives some unreadable images
            say(f"not judged while it trains: {error}")
            return {}
        found = {"learn/rankme": rankme(rows), "learn/judged": float(count)}
        if (labels >= 0).all():
            cut = count * 4 // 5
            classes = labels.to(device)
            named = classify(rows[:cut], classes[:cut], rows[cut:], 20, 0.07)
            found["learn/knn_top1"] = float((named == classes[cut:]).double().mean())
        return found

    return scalars
