"""A config run from Python."""

from collections.abc import Sequence
from pathlib import Path

from pipeline import config, errors, plan
from pipeline.commands import run as command


def run(path: Path | str, *overrides: str, only: Sequence[str] = ()) -> dict[str, Path]:
    """Runs what is not done yet of a config's stages in this process, and returns the folder of each finished stage by
    its name: `run("configs/quickstart.yaml", "moco.epochs=5", only=["moco"])`.

    Overrides are those of the command line, but for sweeps: a sweep is a loop in Python. Signals that ask the process
    to stop are caught meanwhile, so that this runs in the main thread alone. Raises ConfigError for mistakes, and the
    PipelineError of the exit code where a stage failed, after its own line was printed.
    """
    if len(command.sweep(overrides)) > 1:
        raise errors.ConfigError(f"a sweep ({' '.join(overrides)}): call run once for each of its values")
    code = command.main([str(path), *overrides, "--here", *(["--only", *only] if only else [])])
    if code:
        raise errors.of_code(code)(f"{path} ended with exit code {code}: what failed is said above")
    stages = plan.plan(config.load(str(path), overrides), here=True)
    return {stage.name: stage.folder for stage in stages if stage.done}
