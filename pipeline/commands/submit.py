"""pipeline submit CONFIG: runs a config as a Ray job, and prints its log here."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.commands import Parser, parse
from pipeline.errors import ConfigError

ABOUT = """Sends this folder's code and a config to a Ray cluster, shows the job's log, and ends with its exit code.

The same config has one job at a time: submitted again, it is watched. Interrupted here, the job goes on."""


def parser() -> Parser:
    args = Parser(prog="pipeline submit", description=ABOUT, allow_abbrev=False)
    args.add_argument("config", metavar="CONFIG", nargs="?", help="a YAML file in this folder, or on a shared disk")
    args.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as moco.epochs=100 root=/shared/runs")
    args.add_argument("--only", nargs="+", action="extend", default=[], metavar="STAGE", help="as for pipeline run")
    args.add_argument("--address", default=os.environ.get("RAY_API_SERVER_ADDRESS"), metavar="URL",
                      help="of the dashboard, such as http://head:8265 (default: RAY_API_SERVER_ADDRESS)")  # fmt: skip
    args.add_argument("--python", default="python", metavar="WORDS",
                      help='what starts Python there; "uv run python" makes the environment first')  # fmt: skip
    args.add_argument("--detach", action="store_true", help="do not wait for the job")
    args.add_argument("--attach", metavar="JOB", help="watch a job that was submitted before")
    args.add_argument("--stop", metavar="JOB", help="have a job save and leave; waits until it has")
    return args


def main(words: Sequence[str]) -> int:
    options = parse(parser(), words)
    if sum(map(bool, (options.config, options.attach, options.stop))) != 1:
        raise ConfigError("pipeline submit: one of CONFIG, --attach JOB and --stop JOB is expected")
    if not options.address:
        raise ConfigError("pipeline submit: no cluster is named: give --address http://head:8265")
    cfg = load(options) if options.config else None  # a mistake in the config fails here, before anything is sent
    from pipeline.placement import jobs

    with jobs.one_line(options.address):
        client = jobs.connect(options.address)
        if options.stop:
            return jobs.stop(client, options.stop)
        return follow(client, options.attach) if cfg is None else begin(options, client, cfg)


def load(options):
    from pipeline import config

    return config.load(options.config, options.overrides + [w for w in options.only if "=" in w])


def begin(options, client, cfg) -> int:
    """Submits the run, unless a job already does it, and follows the job."""
    from pipeline.placement import jobs

    root = Path.cwd() / cfg.root  # the job's working directory is deleted with it
    path = Path(options.config).resolve()
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    only = ["--only", *options.only] if options.only else []
    words = [str(path), *options.overrides, f"root={root}", *only]
    run = jobs.run_name(options.config, cfg)
    job, before = jobs.running(client, run)
    if job is None:
        job = jobs.submit(client, run, before, words, root, options.python)
        print(f"{job}: submitted; artifacts in {root}", flush=True)
    else:
        print(f"{job}: runs already", flush=True)
    if options.detach:
        print(f"pipeline submit --address {options.address} --attach {job}    (or --stop {job})")
        return 0
    return follow(client, job)


def follow(client, job: str) -> int:
    from pipeline.placement import jobs

    def say(text: str) -> None:
        print(text, end="", flush=True)

    try:
        return jobs.follow(client, job, say)
    except KeyboardInterrupt:
        print(f"\n{job} goes on: --attach {job} watches it, --stop {job} has it save and leave", file=sys.stderr)
        return 130
