"""Pretraining: shards -> what the objective sees of them -> a model."""

from pathlib import Path

from pipeline.settings.stages import Pretrain
from pipeline.training.fit import fit
from pipeline.world import World


def run(settings: Pretrain, seed: int, inputs: dict[str, Path], out: Path, world: World) -> dict[str, float]:
    """Trains the net by the objective; writes the model, its snapshots and the board."""
    return fit(settings, seed, inputs[settings.data], out, world)
