"""What a scheduler starts: `pipeline run`, with its run folder where it outlives the job.

    ray job submit --working-dir . -- python jobs/run.py CONFIG [stage.key=value ...] [--only STAGE ...]
    python jobs/run.py --root CONFIG ...     only prints the run folder, or what is wrong with the config

A relative root is taken below PIPELINE_ROOT, else below the home folder: a Ray job's own folder vanishes with it.
TERM or USR2: save, exit 75. `ray job stop` kills after 3 s unless the job's env_vars raise RAY_JOB_STOP_WAIT_TIME_S.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline import cli, commands, config, process
from pipeline.commands import run
from pipeline.placement import slurm


def main(words: list[str]) -> int:
    only_root = words[:1] == ["--root"]
    words = words[only_root:]
    slurm.export_ranks()
    options = commands.parse(run.parser(), words)
    overrides = [w for w in options.overrides + options.only if "=" in w]
    root = Path(os.environ.get("PIPELINE_ROOT") or Path.home(), config.load(options.config, overrides).root)
    if only_root:
        print(root)
        return 0
    code = cli.main(["run", *words, f"root={root}"])
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        print(f"exit code {code}", flush=True)  # Ray gives none of a job that was stopped
    return code


if __name__ == "__main__":
    process.run(lambda: cli.exit_code(lambda: main(sys.argv[1:])))
