"""pipeline run CONFIG: every stage of a config, each once."""

import argparse
import os
from collections.abc import Sequence
from typing import Any

from pipeline.commands import Parser, parse

ABOUT = """Runs every stage of a config that is not done yet, each once those it needs are done.

A second run has nothing to do; after a change, only what depends on it is done again. Killed anywhere, the same
command goes on."""


def parser() -> Parser:
    made = Parser(prog="pipeline run", description=ABOUT, allow_abbrev=False,
                  formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    made.add_argument("config", metavar="CONFIG", help="a YAML file: seed, root, stages")
    made.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as moco.epochs=100 seed=3 root=/tmp")
    made.add_argument("--only", nargs="+", action="extend", default=[], metavar="STAGE",
                      help="these stages, and what they still need; nothing else")  # fmt: skip
    made.add_argument("--dry-run", action="store_true", help="show what there is to do, and do nothing")
    made.add_argument("--here", action="store_true", help="in this process, without Ray, wherever stages are placed")
    return made


def main(words: Sequence[str]) -> int:
    options = parse(parser(), words)
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
