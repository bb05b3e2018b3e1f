"""Which images a model finds unlikely: its energies of test images against those of sets that are none of them.

A model may give the simplest images, a black one above all, less energy than any it was trained on (Nalisnick et al.
2019, arXiv 1810.09136). So simple sets are among those it is asked to tell apart, and beside the energies stands a
score from which an image's own complexity is taken (Serra et al. 2020, arXiv 1909.11480).
"""

import io
import math
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from pipeline import keyed, sheets
from pipeline.objectives.base import Batch
from pipeline.objectives.densities import bits
from pipeline.sheets import Frame, Picture

SHIFT = 7
"""An image is shifted by one part of so many of its side."""
BATCH = 256
SHOWN = 8
"""Images of each set on the sheet."""


class Scores(NamedTuple):
    """Of a set of images: their energies [n], and these less the images' complexities [n]."""

    energy: Tensor
    corrected: Tensor


def measure(
    objective: Any, images: Tensor, ids: np.ndarray, others: dict[str, Tensor], seed: int
) -> tuple[dict[str, Any], dict[str, Tensor], Picture]:
    """Test images [n, C, H, W] in [0, 1] of these ids against simple sets and ``others``, sets of images by name.

    Metrics: of each set its mean ``energy``; ``auroc``, the share of pairs of a test image and one of the set in which
    the test image has less energy, ties counting half; ``corrected``, the same of energies less complexity. Beside
    them the energies of each set, [n], and a sheet.
    """
    sets = {"test": images} | simple(images, ids, seed) | others
    scores = {name: score(objective, rows, ids, seed) for name, rows in sets.items()}
    metrics = {name: row(scores["test"], found) for name, found in scores.items() if name != "test"}
    return metrics, {name: found.energy for name, found in scores.items()}, picture(sets, scores, metrics)


def simple(images: Tensor, ids: np.ndarray, seed: int) -> dict[str, Tensor]:
    """Sets of images that are simpler than images [n, C, H, W], or made of them."""
    noise = torch.from_numpy(keyed.uniform_of(keyed.key(seed, "noise", ids), images[0].numel()))
    return {
        "black": torch.zeros_like(images),
        "white": torch.ones_like(images),
        "thinned": thinned(images),
        "shifted": images.roll(max(1, images.shape[-1] // SHIFT), 3),
        "upside_down": images.flip(2),
        "noise": noise.to(images).view_as(images),
    }


def thinned(images: Tensor) -> Tensor:
    """Every pixel as dark as the darkest of itself and its neighbours to the left, above and between them."""
    return -max_pool2d(pad(-images, (1, 0, 1, 0), value=-1.0), 2, 1)


@torch.no_grad()
def score(objective: Any, images: Tensor, ids: np.ndarray, seed: int) -> Scores:
    """Energies of images [n, C, H, W], whatever is drawn for them being that of their ids."""
    numbers = torch.from_numpy(np.resize(ids, len(images))).to(images.device)
    batches = [Batch((x,), i, seed=seed) for x, i in zip(images.split(BATCH), numbers.split(BATCH), strict=True)]
    energies = torch.cat([objective(batch).low.double().cpu() for batch in batches])
    lengths = torch.cat([complexity(modelled(objective, batch)) for batch in batches])
    return Scores(energies, energies - lengths)


def modelled(objective: Any, batch: Batch) -> Tensor:
    """A batch's images [B, C, H, W] as the energies are of them: grey, or as binary states."""
    how = getattr(objective.settings, "binarisation", "none")
    return batch.views[0] if how == "none" else bits(batch, how).view_as(batch.views[0]).bool()


def complexity(images: Tensor) -> Tensor:
    """Lengths in nats [n] of images [n, C, H, W] as PNG, a file a channel: of one bit a pixel where they are bool,
    else of eight, for pixels in [0, 1]."""
    grey = images if images.dtype == torch.bool else (images.clamp(0, 1) * 255).round().byte()
    return torch.tensor([sum(map(png_bytes, image)) for image in grey.cpu().numpy()]).double() * 8 * math.log(2)


def png_bytes(channel: np.ndarray) -> int:
    file = io.BytesIO()
    PIL.Image.fromarray(channel).save(file, "png", optimize=True)
    return file.tell()


def row(test: Scores, other: Scores) -> dict[str, float]:
    return {
        "energy": float(other.energy.mean()),
        "auroc": auroc(test.energy, other.energy),
        "corrected": auroc(test.corrected, other.corrected),
    }


def auroc(low: Tensor, high: Tensor) -> float:
    """The share of pairs of a number of ``low`` and one of ``high`` in which the latter is greater; ties are half."""
    from sklearn.metrics import roc_auc_score

    labels = np.repeat([0, 1], [len(low), len(high)])
    return float(roc_auc_score(labels, torch.cat([low, high]).numpy()))


def picture(sets: dict[str, Tensor], scores: dict[str, Scores], metrics: dict[str, dict[str, float]]) -> Picture:
    """Images of each set, a line each, with what tells it from test images."""
    cells = [sheets.images(images[:SHOWN]) for images in sets.values()]
    words = [[f"{energy:.4g}" for energy in found.energy[:SHOWN].tolist()] for found in scores.values()]
    told = "; ".join(f"{name} {found['auroc']:.3f} ({found['corrected']:.3f})" for name, found in metrics.items())
    text = f"Energies below images. AUROC of each set against test images (less the images' complexity): {told}."
    white = list(sets).index("white")
    frame = Frame((white, 0), (white, len(cells[white]) - 1), "#999999")  # on a white page
    return Picture(sheets.sheet(cells, words, rows=[name.replace("_", " ") for name in sets], frames=[frame]), text)
