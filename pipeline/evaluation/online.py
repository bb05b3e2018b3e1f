"""Online evaluation: what an encoder's features are worth while it trains, from time to time."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import keyed
from pipeline.data.images import SquareImages
from pipeline.data.shards import Shards
from pipeline.errors import DataError
from pipeline.evaluation.encoders import Encoder
from pipeline.evaluation.features import features
from pipeline.evaluation.knn import classify
from pipeline.evaluation.quality import rankme
from pipeline.image import Image
from pipeline.lines import say
from pipeline.settings.stages import OnlineEvaluation

MEMORY = 1 << 28  # bytes of those images that are kept decoded
LEAST = 100  # images under which nothing is said
DRAW = "judged"  # the key of their draw: another word would draw other images


def evaluation(
    settings: OnlineEvaluation,
    shards: Shards,
    image: Image,
    used: int,
    budget: int,
    seed: int,
    normalised: bool = True,
) -> Callable[[nn.Module], dict[str, float]] | None:
    """Scalars of an encoder while it learns: RankMe of its features, and the accuracy of a kNN vote. ``normalised``:
    whether it takes normalised pixels.

    The images are a fixed draw of the training split, at most ``budget``: those past the ``used`` ones that are
    trained on, if there are enough. Their labels are used here and nowhere else in a training; without labels there is
    no vote. None where there are too few images to say anything; no scalars where one cannot be read.
    """
    most = min(settings.images, budget)
    start = used if shards.n - used >= most else 0
    count = min(most, shards.n - start)
    if count < LEAST:
        return None
    ids = start + keyed.permute(np.arange(count), shards.n - start, seed, DRAW)
    labels = torch.from_numpy(shards.labels[ids])
    images = SquareImages(shards, image.side, ids, MEMORY)

    def scalars(module: nn.Module) -> dict[str, float]:
        # A copy, so that neither its mode nor its statistics are touched.
        encoder: Any = Encoder(copy.deepcopy(module).float(), image, normalised)
        device = next(encoder.parameters()).device
        try:
            rows = features(encoder, images, device).to(device)
        except DataError as error:  # a training forgives some unreadable images
            say(f"not evaluated while it trains: {error}")
            return {}
        values = {"collapse/rankme": rankme(rows), "learn/online_images": float(count)}
        return values | ({"accuracy/knn_online": vote(settings, rows, labels)} if (labels >= 0).all() else {})

    return scalars


def vote(settings: OnlineEvaluation, rows: Tensor, labels: Tensor) -> float:
    """Share of the last fifth of the rows [n, D] whose class their nearest neighbours among the others vote for."""
    bank, classes = rows[: len(rows) * 4 // 5], labels.to(rows.device)
    named = classify(bank, classes[: len(bank)], rows[len(bank) :], settings.neighbours, settings.temperature)
    return float((named == classes[len(bank) :]).double().mean())
