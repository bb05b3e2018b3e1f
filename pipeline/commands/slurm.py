"""pipeline slurm CONFIG: prints or submits the sbatch command that runs a config."""

import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pipeline.commands import Parser, parse
from pipeline.errors import ClusterError, ConfigError

ABOUT = """Prints the sbatch command for a config; with --submit, gives it to Slurm.

Every GPU (without GPUs: every task) is one rank of one world. With --ray the nodes form a Ray cluster instead, and
stages go where their place says."""
SCRIPTS = Path(__file__).parents[2] / "slurm"


def parser() -> Parser:
    args = Parser(prog="pipeline slurm", description=ABOUT, allow_abbrev=False)
    args.add_argument("config", metavar="CONFIG")
    args.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    args.add_argument("--nodes", type=int, default=1, metavar="N")
    args.add_argument("--gpus", type=int, default=0, metavar="G", help="of each node")
    args.add_argument("--tasks", type=int, default=0, metavar="T", help="ranks of each node (default: its GPUs, or 1)")
    args.add_argument("--cpus", type=int, default=0, metavar="C", help="of each rank; with --ray of each node")
    args.add_argument("--time", metavar="LIMIT", help="such as 4:00:00; the run goes on in the next job")
    args.add_argument("--partition", metavar="NAME")
    args.add_argument("--ray", action="store_true", help="a Ray cluster of the job's own")
    args.add_argument("--submit", action="store_true", help="submit it, and print the job's number")
    return args


def main(words: Sequence[str]) -> int:
    options = parse(parser(), words)
    from pipeline import config

    config.load(options.config, options.overrides)  # a mistake in the config fails here, not in the queue
    command = sbatch(options)
    if not options.submit:
        print(shlex.join(command))
        return 0
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise ClusterError("sbatch is not on this machine: run this where Slurm is, or leave --submit out") from None
    if result.returncode:
        raise ClusterError(f"Slurm refused the job: {result.stderr.strip()}")
    print(result.stdout.strip())
    return 0


def sbatch(options) -> list[str]:
    """The words of the sbatch command, which is run without a shell. Raises ConfigError for options that Slurm would
    refuse."""
    numbers = {"--nodes": options.nodes, "--gpus": options.gpus, "--tasks": options.tasks, "--cpus": options.cpus}
    wrong = [f"{name} {value}" for name, value in numbers.items() if value < (name == "--nodes")]
    if wrong:
        raise ConfigError(f"pipeline slurm: {', '.join(wrong)}: a whole number is expected, and at least one node")
    if options.time and not re.fullmatch(r"[0-9]+([-:][0-9]+){0,3}", options.time):
        raise ConfigError(f"--time {options.time}: expected minutes, hours:minutes:seconds or days-hours")
    script = SCRIPTS / ("ray.sbatch" if options.ray else "accelerate.sbatch")
    if not script.is_file():
        raise ConfigError(f"{script} is not there: run this from a checkout of the project")
    tasks = 1 if options.ray else options.tasks or options.gpus or 1
    values = {
        "--nodes": options.nodes,
        "--ntasks-per-node": tasks,
        "--gpus-per-node": options.gpus,
        "--cpus-per-task": options.cpus,
        "--time": options.time,
        "--partition": options.partition,
    }
    flags = [f"{name}={value}" for name, value in values.items() if value]
    here = Path.cwd()
    path = script.relative_to(here) if script.is_relative_to(here) else script
    return ["sbatch", "--parsable", *flags, str(path), options.config, *options.overrides]


