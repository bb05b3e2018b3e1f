"""Packing: a source of images -> shards that every later stage reads."""

from pathlib import Path
from typing import Any

from pipeline.data.pack import pack
from pipeline.settings.stages import Pack
from pipeline.world import World


def run(settings: Pack, seed: int, inputs: dict[str, Path], out: Path, world: World) -> dict[str, Any]:
    """Packs ``settings.source`` into ``out``."""
    return pack(settings, seed, out, world)
