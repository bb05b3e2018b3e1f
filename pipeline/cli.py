"""The command line.

    pipeline run CONFIG [stage.key=value ...] [--only STAGE ...] [--dry-run] [--here]
    pipeline show [RUNS]

Exit codes: 0 done, 1 a fault of ours, 2 usage or config, 65 data, 69 the cluster did not form, 70 no progress,
75 saved after a signal: run the same command again.
"""

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from pipeline.errors import ConfigError, PipelineError

RUN = """Runs every stage of a config that is not done yet, each once those it needs are done.

A second run has nothing to do; after a change, only what depends on it is done again. Killed anywhere, the same
command goes on."""


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is an exception like any other of the user's."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; {self.format_usage().strip()}")


def run_parser() -> Parser:
    parser = Parser(prog="pipeline run", description=RUN, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("config", metavar="CONFIG", help="a YAML file: seed, root, stages")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as moco.epochs=100 seed=3 root=/tmp")
    parser.add_argument("--only", nargs="+", action="extend", default=[], metavar="STAGE",
                        help="these stages, and what they still need; nothing else")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="show what there is to do, and do nothing")
    parser.add_argument("--here", action="store_true", help="in this process, without Ray, wherever stages are placed")
    return parser


def show_parser() -> Parser:
    parser = Parser(prog="pipeline show", description="Results as tables.", allow_abbrev=False)
    parser.add_argument("runs", nargs="?", default="runs", metavar="RUNS", help="folder of artifacts (default: runs)")
    return parser


def parse(parser: Parser, words: Sequence[str]) -> argparse.Namespace:
    """Options and positions in any order; an unknown option is met with the nearest right one."""
    options, unknown = parser.parse_known_intermixed_args(words)
    for word in unknown:
        close = difflib.get_close_matches(word, parser._option_string_actions, 1)
        near = f'; did you mean "{close[0]}"?' if close else f"; {parser.format_usage().strip()}"
        raise ConfigError(f'unknown {"option" if word.startswith("-") else "argument"} "{word}"{near}')
    return options


def run(words: Sequence[str]) -> int:
    options = parse(run_parser(), words)
    overrides = options.overrides + [w for w in options.only if "=" in w]  # --only takes all words that follow it
    names = [w for w in options.only if "=" not in w]
    from pipeline import config, runner
    from pipeline import show as tables

    cfg = config.load(options.config, overrides)
    planned = runner.plan(cfg, options.here)
    chosen = runner.only(planned, names) if names else planned
    if options.dry_run:
        tables.dry_run(planned, chosen)
        return 0
    quiet = os.environ.get("RANK", "0") != "0"
    cluster = open_cluster(chosen, quiet)
    try:
        from pipeline.placement import here

        with tables.Watch(quiet) as watch:
            code = runner.execute(planned, chosen, watch, here, cluster)
    finally:
        if cluster is not None:
            cluster.close()
    if code == 0 and not quiet:
        tables.results([p.folder for p in chosen])
        print(f"tensorboard --logdir {cfg.root}")
    return code


def open_cluster(chosen: Sequence[Any], quiet: bool) -> Any:
    """Ray's cluster if a stage that is to be done runs there, and a line saying so."""
    away = [p for p in chosen if not p.done and p.place != "here"]
    if not away:
        return None
    from pipeline.placement.ray import Cluster

    where = os.environ.get("RAY_ADDRESS", "a local one, which ends with this command")
    if not quiet:
        print(f"Ray cluster: {where}; --here runs every stage in this process", flush=True)
    return Cluster()


def show(words: Sequence[str]) -> int:
    options = parse(show_parser(), words)
    from pipeline import show as tables

    tables.show(options.runs)
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"run": run, "show": show}


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    words = sys.argv[1:] if words is None else list(words)
    try:
        if not words or words[0] in ("-h", "--help"):
            print(__doc__)
            return 0 if words else ConfigError.code
        if words[0] not in COMMANDS:
            close = difflib.get_close_matches(words[0], COMMANDS, 1)
            near = f'did you mean "{close[0]}"?' if close else f"expected one of {', '.join(COMMANDS)}"
            raise ConfigError(f'unknown command "{words[0]}"; {near}')
        return COMMANDS[words[0]](words[1:])
    except PipelineError as error:
        print(error, file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as leave:  # argparse's --help
        return int(leave.code or 0)
