"""Runs a config from Python."""

from collections.abc import Sequence
from pathlib import Path

from pipeline import config, errors, plan
from pipeline.commands import run as command


def run(path: Path | str, *overrides: str, only: Sequence[str] = ()) -> dict[str, Path]:
    """Runs the unfinished stages of a config in this process, and returns the folder of each finished stage by its
    name: `run("configs/quickstart.yaml", "moco.epochs=5", only=["moco"])`.

    Overrides are those of the command line, without sweeps (in Python, write a loop). Call it in the main thread,
    since it handles signals. Raises ConfigError for mistakes in the config; where a stage failed, it prints the
    stage's error and raises the PipelineError of its exit code.
    """
    if len(command.sweep(overrides)) > 1:
        raise errors.ConfigError(f"a sweep ({' '.join(overrides)}): call run once for each of its values")
    code = command.main([str(path), *overrides, "--here", *(["--only", *only] if only else [])])
    if code:
        raise errors.of_code(code)(f"{path} ended with exit code {code}: the lines above say which stage failed")
    stages = plan.plan(config.load(str(path), overrides), here=True)
    return {stage.name: stage.folder for stage in stages if stage.done}
