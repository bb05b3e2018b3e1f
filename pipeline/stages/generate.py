"""What a trained model draws of test images, and the energies that it gives them."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline import keyed, objectives
from pipeline.board import Board, last_step
from pipeline.data.images import class_names, images
from pipeline.data.shards import Shards
from pipeline.objectives.base import Batch
from pipeline.settings.stages import Generate
from pipeline.world import World


@torch.no_grad()
def run(settings: Generate, seed: int, inputs: dict[str, Path], out: Path, world: World) -> dict[str, float]:
    """Draws the model's figures on the board -> the mean energy of the images they are of."""
    objective = objectives.load(inputs[settings.model]).to(world.device)
    shards = Shards.open(inputs[settings.data], "test")
    ids = keyed.permute(np.arange(min(settings.images, shards.n)), shards.n, seed, "shown")
    pictures = test_images(shards, ids).to(world.device)
    board = Board(out, -1)  # always anew: it costs seconds
    step, source = last_step(inputs[settings.model]) or 0, f"Model {settings.model}, data {settings.data}."
    for tag, figure in objective.figures(pictures, class_names(shards, ids), seed).items():
        board.image(tag, step, figure.of(source))
    energies = objective(Batch((pictures,), torch.from_numpy(ids).to(world.device), seed=seed)).low
    metrics = {"energy": float(energies.mean())}
    board.scalars(0, {"energy/test": metrics["energy"]})
    board.close()
    return metrics


def test_images(shards: Shards, ids: np.ndarray) -> Tensor:
    """The images of these ids in [0, 1], [n, C, H, W]."""
    return images(shards, ids, shards.image(None).side).float() / 255
