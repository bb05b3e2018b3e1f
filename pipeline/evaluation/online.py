"""Online evaluation: what an encoder's features are worth while it trains, from time to time."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline import keyed
from pipeline.data.images import SquareImages
from pipeline.data.shards import Shards
from pipeline.errors import DataError
from pipeline.evaluation.encoders import Encoder
from pipeline.evaluation.features import BATCH
from pipeline.evaluation.knn import classify
from pipeline.evaluation.quality import rankme
from pipeline.image import Image
from pipeline.lines import say

MEMORY = 1 << 28  # bytes of those images that are kept decoded
MOST, LEAST = 8192, 100
"""Images that an encoder is evaluated on while it trains; under LEAST nothing is said."""
DRAW = "judged"  # the key of their draw: another word would draw other images


def evaluation(
    shards: Shards, image: Image, used: int, budget: int, seed: int, normalised: bool = True
) -> Callable[[nn.Module], dict[str, float]] | None:
    """Scalars of an encoder while it learns: RankMe of its features, and the share of a fifth of the images whose
    class their nearest neighbours in the rest name (k 20, T 0.07). ``normalised``: whether it takes normalised pixels.

    The images are a fixed draw of the training split, at most ``budget``: those past the ``used`` ones that are
    trained on, if there are enough. Their labels are used here and nowhere else in a training; without labels there is
    no such share. None where there are too few images to say anything; no scalars where one cannot be read.
    """
    start = used if shards.n - used >= min(MOST, budget) else 0
    count = min(MOST, budget, shards.n - start)
    if count < LEAST:
        return None
    chosen = start + keyed.permute(np.arange(count), shards.n - start, seed, DRAW)
    labels = torch.from_numpy(shards.labels[chosen])
    images = SquareImages(shards, image.side, chosen, MEMORY)

    @torch.no_grad()
    def scalars(module: nn.Module) -> dict[str, float]:
        # A copy, so that neither its mode nor its statistics are touched.
        still: Any = Encoder(copy.deepcopy(module).float(), image, normalised).eval()
        still.to(memory_format=torch.channels_last)
        device = next(still.parameters()).device
        try:
            rows = torch.cat([still(x.to(device)) for x in images.batches(BATCH)])
        except DataError as error:  # a training forgives some unreadable images
            say(f"not evaluated while it trains: {error}")
            return {}
        found = {"learn/rankme": rankme(rows), "learn/online_images": float(count)}
        if (labels >= 0).all():
            cut = count * 4 // 5
            classes = labels.to(device)
            named = classify(rows[:cut], classes[:cut], rows[cut:], 20, 0.07)
            found["learn/knn_top1"] = float((named == classes[cut:]).double().mean())
        return found

    return scalars
