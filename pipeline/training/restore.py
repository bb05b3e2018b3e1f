"""What becomes of a training that has diverged: it goes back to its last good checkpoint, and on at half the rate.

How often it has is a file beside the checkpoints, so that a restart goes on at the same rate to the same end.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.errors import DivergedError
from pipeline.lines import say
from pipeline.training import checkpoint
from pipeline.world import World

RECORD = "restores.json"


def record(out: Path) -> list[dict[str, int]]:
    """The restores so far, each the step that had diverged and the step gone back to."""
    path = out / RECORD
    return json.loads(path.read_text()) if path.exists() else []


def halved(settings: Any, times: int) -> Any:
    """A training's settings with its learning rate halved so many times."""
    optimiser = settings.optimiser.model_copy(update={"lr": settings.optimiser.lr / 2**times})
    return settings.model_copy(update={"optimiser": optimiser})


def go_back(error: DivergedError, out: Path, most: int, world: World) -> None:
    """Drops the checkpoints that are no older than the step that has diverged, records that, and says so. Raises the
    error itself where that was done ``most`` times. All ranks call it together."""
    before = record(out)
    if len(before) >= most:
        raise error
    world.barrier()  # every rank has read the record
    if world.main:
        folder = out / "checkpoints"
        steps = checkpoint.steps(folder)
        for step in steps:
            if step >= error.step:
                shutil.rmtree(folder / f"{step:08d}")
        last = max((step for step in steps if step < error.step), default=0)
        files.write_json(out / RECORD, [*before, {"diverged": error.step, "back_to": last}])
        times = f"{len(before) + 1} of at most {most} times"
        say(f"{error.found}: back to step {last}, at half the learning rate ({times})", event="restore", step=last)
    world.barrier()
