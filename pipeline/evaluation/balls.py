"""What keeps the balls of a latent plane together: noise drives codes apart, since those that overlap are decoded to
the same image; springs hold them at the origin, and the rest of the KL divergence their size.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline import objectives
from pipeline.board import METRICS
from pipeline.objectives.base import Batch
from pipeline.objectives.latents import Panel, balls
from pipeline.objectives.variational import Variational, active
from pipeline.sheets import Picture


class Plane(NamedTuple):
    """A model, where it puts the images, and the root mean square of its means in each quarter of its training."""

    model: Variational
    mean: Tensor
    deviation: Tensor
    growth: list[float]

    @property
    def strength(self) -> float:
        """Of the springs."""
        return self.model.settings.beta

    @property
    def rms(self) -> float:
        return float(self.mean.square().mean().sqrt())

    def panel(self, title: str) -> Panel:
        return Panel(self.mean, self.deviation, title)


@torch.no_grad()
def sheet(folders: Sequence[Path], batch: Batch, classes: list[str]) -> tuple[Picture, dict[str, Any]]:
    """A panel for each of the three forms among the models, and their numbers: noise without a penalty, springs, and
    the whole KL divergence."""
    planes = [plane(folder, batch) for folder in folders]
    fixed = [x for x in planes if x.model.settings.variance == "one"]
    found = [alone(x) for x in fixed if not x.strength]
    found += springs(sorted((x for x in fixed if x.strength), key=lambda x: x.strength))
    found += [whole(x) for x in planes if x.model.settings.variance == "learned"]
    numbers = {name: value for _, values in found for name, value in values.items()}
    return balls([panel for panel, _ in found], classes), numbers


def alone(plane: Plane) -> tuple[Panel, dict[str, Any]]:
    """Without a penalty the means go on growing."""
    title = f"noise alone: root mean square of the means\n{words(plane.growth)}\nin the quarters of training"
    return plane.panel(title), {"balls_growth": plane.growth}


def springs(planes: list[Plane]) -> list[tuple[Panel, dict[str, Any]]]:
    """The stronger the springs, the smaller the means; one panel, of the weakest."""
    if not planes:
        return []
    strengths, sizes = [x.strength for x in planes], [x.rms for x in planes]
    title = f"springs of strength {words(strengths)} (here the first):\n{words(sizes)}\nroot mean square of the means"
    return [(planes[0].panel(title), {"balls_strengths": strengths, "balls_rms": sizes})]


def whole(plane: Plane) -> tuple[Panel, dict[str, Any]]:
    """Where the decoder's first layer can undo any scale, V + mu^2 is 1 in the mean over images at the optimum."""
    moment = second_moment(plane.mean, plane.deviation)
    title = f"the whole KL divergence: V + μ²\n{moment:.3f}\nin the mean over images and units in use"
    return plane.panel(title), {"balls_moment": moment}


def plane(folder: Path, batch: Batch) -> Plane:
    model: Any = objectives.load(folder).to(batch.device)
    mean, logvar = (x.cpu() for x in model.encode(model.target(batch)))
    rows = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    sizes = [row["vae/means_rms"] for row in rows if "vae/means_rms" in row]
    quarters = np.array_split(np.array(sizes), 4)
    return Plane(model, mean, logvar.mul(0.5).exp(), [float(quarter.mean()) for quarter in quarters])


def second_moment(mean: Tensor, deviation: Tensor) -> float:
    """The mean of V + mu^2 over images and units in use, or over all where none is."""
    used = active(mean)
    return float((mean.square() + deviation.square())[:, used | ~used.any()].mean())


def words(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
