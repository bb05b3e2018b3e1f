"""The command line.

    pipeline run CONFIG [stage.key=value ...] [--only STAGE ...] [--dry-run] [--here]
    pipeline settings [KIND]                                        every setting, with default and meaning
    pipeline doctor CONFIG [stage.key=value ...]                    what limits its trainings, and what to change
    pipeline doctor --cluster [RUNS]                                whether the machines fit together

    pipeline show [ROOT]                                            every run: how it differs, what it has come to
    pipeline report CONFIG [stage.key=value ...]                    what came out, as one page and as results.json
    pipeline diff A B                                               what two runs differ in, and by how much
    pipeline clean CONFIG ... [--remove]                            what no config named needs, with sizes
    pipeline embed ENCODER IMAGES OUT.parquet                       features of any images
    pipeline export ENCODER FOLDER                                  a ResNet or ViT for timm; ONNX

    pipeline check SHARDS [--quarantine] [--bad-samples FILE ...]   every fault of shards, or of a folder of images
    pipeline index TARS [--test TARS] [--out FOLDER]                tars of others as shards
    pipeline parity CONFIG [stage.key=value ...] [--processes N ...] [--steps N] [--precision fp64]
    pipeline submit CONFIG --address URL [stage.key=value ...]      as a Ray job
    pipeline slurm CONFIG --nodes N --gpus G [--submit]             the sbatch command

Exit codes: 0 done, 1 a fault of this program, 2 usage or config, 65 data, 69 the cluster did not form,
70 no progress, 75 saved after a signal: run the same command again.
"""

import difflib
import importlib
import sys
import traceback
from collections.abc import Callable, Sequence

from pipeline import errors, launcher
from pipeline.errors import ConfigError, PipelineError
from pipeline.lines import say

COMMANDS = (
    *("run", "settings", "doctor", "show", "diff", "report", "clean", "embed", "export"),
    *("check", "index", "parity", "submit", "slurm"),
)
"""The modules of pipeline.commands, each imported when its command is called."""


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    words = sys.argv[1:] if words is None else list(words)
    return exit_code(lambda: command(words))


def command(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if words else ConfigError.code
    if words[0] not in COMMANDS:
        close = difflib.get_close_matches(words[0], COMMANDS, 1)
        near = f'did you mean "{close[0]}"?' if close else f"expected one of {', '.join(COMMANDS)}"
        raise ConfigError(f'unknown command "{words[0]}"; {near}')
    launcher.check_environment()
    return importlib.import_module(f"pipeline.commands.{words[0]}").main(words[1:])


def exit_code(run: Callable[[], int]) -> int:
    """The exit code that ``run`` returns, or that of the error it raises, whose line is printed; a fault of this
    program is printed with its traceback."""
    try:
        return run()
    except KeyboardInterrupt:
        text = "interrupted; the same command goes on from the last checkpoint"
        say(text, event="stopped", file=sys.stderr, code=130)
        return 130
    except SystemExit as exit:  # argparse's --help
        return int(exit.code or 0)
    except Exception as error:
        line = errors.explain(error)
        if line is None:
            traceback.print_exc()
            line = PipelineError(errors.fault(error))
        say(str(line), event="failed", file=sys.stderr, code=line.code)
        return line.code
