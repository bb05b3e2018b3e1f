"""pipeline run CONFIG: every stage of a config, each once."""

import argparse
import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline import launcher, lines
from pipeline.commands import Parser, parse
from pipeline.errors import ConfigError

ABOUT = """Runs every stage of a config that is not done yet, each once those it needs are done.

A second run has nothing to do; after a change, only what depends on it is done again. Killed anywhere, the same
command goes on."""

QUOTES = """a comma makes a sweep; where it is part of a value, quote that: 'shards.source="folder:a,b"'"""


def parser() -> Parser:
    made = Parser(prog="pipeline run", description=ABOUT, allow_abbrev=False,
                  formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    made.add_argument("config", metavar="CONFIG", help="a YAML file: seed, root, stages")
    made.add_argument("overrides", nargs="*", metavar="KEY=VALUE",
                      help="such as moco.epochs=100 root=/tmp; seed=0,1,2 is a run of each")  # fmt: skip
    made.add_argument("--only", nargs="+", action="extend", default=[], metavar="STAGE",
                      help="these stages, and what they still need; nothing else")  # fmt: skip
    made.add_argument("--dry-run", action="store_true", help="show what there is to do, and do nothing")
    made.add_argument("--here", action="store_true", help="in this process, without Ray, wherever stages are placed")
    made.add_argument("--json", action="store_true", help="say every line as a JSON object, for machines")
    return made


def main(words: Sequence[str]) -> int:
    options = parse(parser(), words)
    if options.json:
        os.environ["PIPELINE_LOG"] = "json"
    overrides = options.overrides + [w for w in options.only if "=" in w]  # --only takes all words that follow it
    names = [w for w in options.only if "=" not in w]
    from pipeline import config, runner
    from pipeline import show as tables

    quiet = launcher.rank() > 0
    cfgs = {}
    for mark, chosen in sweep(overrides).items():
        try:
            cfgs[mark] = config.load(options.config, chosen)
        except ConfigError as error:
            raise ConfigError(f"{error}\n{QUOTES}" if mark else str(error)) from None

    for cfg in cfgs.values():
        writable(Path(cfg.root))
    known: dict[str, dict[str, str]] = {}

    def plan() -> tuple[list[Any], list[Any], dict[str, list[Any]]]:
        """Every stage, those that are asked for, and these by variant."""
        variants = {mark: runner.plan(cfg, options.here, known) for mark, cfg in cfgs.items()}
        planned = runner.together(variants)
        named = {mark: runner.only(stages, names) if names else stages for mark, stages in variants.items()}
        keys = {p.key for stages in named.values() for p in stages}
        return planned, [p for p in planned if p.key in keys], named

    planned, chosen, named = plan()
    if len(cfgs) > 1 and not quiet:
        lines.say(f"a sweep of {len(cfgs)} runs: {'; '.join(cfgs)}", event="sweep")
    if options.dry_run:
        tables.dry_run(planned, chosen)
        return 0
    if launcher.size() > 1:
        from pipeline import preflight

        preflight.gate(planned[0].folder.parent.resolve())
    from pipeline.placement import here

    cluster = open_cluster(chosen, quiet)
    try:
        with tables.Watch(quiet) as watch:
            code = runner.execute(planned, chosen, watch, here, cluster, lambda: plan()[:2])
    finally:
        if cluster is not None:
            cluster.close()
    if code == 0 and not quiet:
        _, chosen, named = plan()
        with suppress(OSError):  # all is done, whether or not it can be shown
            tables.results([p.folder for p in chosen])
            if len(named) > 1:
                tables.compare({mark: [p.folder for p in plan] for mark, plan in named.items()})
        lines.say(f"tensorboard --logdir {shlex.quote(next(iter(cfgs.values())).root)}")
    if launcher.size() > 1:
        here.leave(code)
    return code


def writable(root: Path) -> None:
    """Raises ConfigError where a run folder's name is one that TensorBoard cannot write to."""
    name = str(root.expanduser().resolve())
    if (told := lines.legible(name)) != name:
        raise ConfigError(f"root: {told} is no name in UTF-8: rename that folder, or name another by root=")


def sweep(overrides: Sequence[str]) -> dict[str, list[str]]:
    """Every combination of the values that overrides list: "seed=0,1" -> {"seed=0": [...], "seed=1": [...]}. Commas
    inside brackets and quotes belong to one value; where nothing is listed, one combination without a name."""
    found: dict[str, list[str]] = {"": []}
    for text in overrides:
        key, equals, value = text.partition("=")
        values = listed(value) if equals else [value]
        several = len(values) > 1
        found = {
            f"{mark} {key}={one}".strip() if several else mark: [*before, f"{key}{equals}{one}"]
            for mark, before in found.items()
            for one in values
        }
    return found


def listed(value: str) -> list[str]:
    """A value cut at its commas, but for those inside brackets and quotes. A quote opens where a word begins: the one
    in "it's" is a letter."""
    found, depth, quote, before = [""], 0, "", ""
    for letter in value:
        if letter == quote:
            quote = ""
        elif letter in "\"'" and not quote and before in ("", *" ,[{(:"):
            quote = letter
        elif not quote:
            depth = max(0, depth + (letter in "[{(") - (letter in ")}]"))
        if letter == "," and not depth and not quote:
            found.append("")
        else:
            found[-1] += letter
        before = letter
    return found


def open_cluster(chosen: Sequence[Any], quiet: bool) -> Any:
    """Ray's cluster if a stage that is to be done runs there, and a line saying so."""
    away = [p for p in chosen if not p.done and p.place != "here"]
    if not away:
        return None
    from pipeline.placement.ray import Cluster

    where = os.environ.get("RAY_ADDRESS", "a local one, which ends with this command")
    if not quiet:
        lines.say(f"Ray cluster: {where}; --here runs every stage in this process")
    return Cluster()
