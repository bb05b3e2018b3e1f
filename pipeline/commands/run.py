"""pipeline run CONFIG: runs every stage of a config, each once."""

import argparse
import os
import shlex
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import errors, launcher, lines
from pipeline.commands import Parser, parse
from pipeline.errors import ConfigError, Stopped

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.plan import PlannedStage

ABOUT = """Runs every stage of a config that is not done yet, each once those it needs are done.

A second run has nothing to do; after a change, only what depends on it is done again. Killed anywhere, the same
command goes on."""

QUOTES = """a comma makes a sweep; where it is part of a value, quote that: 'shards.source="folder:a,b"'"""


def parser() -> Parser:
    args = Parser(prog="pipeline run", description=ABOUT, allow_abbrev=False,
                  formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    args.add_argument("config", metavar="CONFIG", help="a YAML file: name, seed, root, stages")
    args.add_argument("overrides", nargs="*", metavar="KEY=VALUE",
                      help="such as moco.epochs=100 root=/tmp; seed=0,1,2 is a run of each")  # fmt: skip
    args.add_argument("--only", nargs="+", action="extend", default=[], metavar="STAGE",
                      help="these stages, and what they still need; nothing else")  # fmt: skip
    args.add_argument("--dry-run", action="store_true", help="show what there is to do, and do nothing")
    args.add_argument("--here", action="store_true", help="in this process, without Ray, wherever stages are placed")
    args.add_argument("--json", action="store_true", help="say every line as a JSON object, for machines")
    return args


def main(words: Sequence[str]) -> int:
    options = parse(parser(), words)
    if options.json:
        os.environ["PIPELINE_LOG"] = "json"
    run = Run(options)
    if len(run.configs) > 1 and launcher.rank() == 0:
        lines.say(f"a sweep of {len(run.configs)} runs: {'; '.join(run.configs)}", event="sweep")
    if options.dry_run:
        from pipeline import show

        show.dry_run(run.stages, run.selection)
        return 0
    if launcher.size() > 1:
        from pipeline import preflight

        preflight.check(run.stages[0].folder.parent.resolve())
    code = run.execute()
    if launcher.rank() == 0:
        if code == 0:
            run.show_results()
        if code != Stopped.code:
            run.draw_report()
    if launcher.size() > 1:
        from pipeline.placement import here

        here.leave(code)
    return code


class Run:
    """The stages that a command line selects, in every variant of its config."""

    def __init__(self, options: argparse.Namespace):
        from pipeline import logs

        overrides = options.overrides + [w for w in options.only if "=" in w]  # --only takes all words that follow it
        self.names = [w for w in options.only if "=" not in w]
        self.here = options.here
        self.words = [options.config, *overrides]
        self.configs = load(options.config, overrides)
        self.fingerprints: dict[str, dict[str, str]] = {}
        self.plan()
        first = next(iter(self.configs.values()))
        self.logs = logs.Logs(Path(first.root), first.name)

    def plan(self) -> tuple[list["PlannedStage"], list["PlannedStage"]]:
        """Plans every stage, at a later call anew. Returns all stages, and the selected ones."""
        from pipeline import plan

        variants = {mark: plan.plan(cfg, self.here, self.fingerprints) for mark, cfg in self.configs.items()}
        self.stages, self.every = plan.merge(variants), variants
        self.variants = {m: plan.only(stages, self.names) if self.names else stages for m, stages in variants.items()}
        keys = {p.key for stages in self.variants.values() for p in stages}
        self.selection = [p for p in self.stages if p.key in keys]
        return self.stages, self.selection

    def execute(self) -> int:
        """Runs the unfinished stages, and returns the exit code."""
        from pipeline import display, runner
        from pipeline.placement import here

        quiet = launcher.rank() > 0
        cluster = open_cluster(self.selection, quiet)
        try:
            with nullcontext() if quiet else self.logs.kept(lambda: self.every), display.Display(quiet) as shown:
                return runner.execute(self.stages, self.selection, shown, here, cluster, self.plan)
        finally:
            if cluster is not None:
                cluster.close()

    def show_results(self) -> None:
        """Prints tables of the probes' results, and how to see the rest. Errors of standard output are ignored."""
        from pipeline import logs, show

        self.plan()
        with suppress(OSError):
            show.results([p.folder for p in self.selection])
            if len(self.variants) > 1:
                show.compare({mark: [p.folder for p in stages] for mark, stages in self.variants.items()})
        self.logs.refresh(self.every)
        folder = self.logs.folder(self.every)
        shown = folder if folder.exists() else folder.parents[2]  # a file system without links
        lines.say(f"tensorboard --logdir {shlex.quote(str(shown))}    then {logs.address(self.every)}")

    def draw_report(self) -> None:
        """Draws the page of the config, whatever of it was asked for, and says where it lies, or why there is none:
        what was run stays as it is."""
        if os.environ.get("PIPELINE_REPORT") == "no":
            return
        from pipeline import report

        try:
            self.plan()
            page = report.write(self.words, self.logs.root, self.every, only_news=True)
        except Exception as error:
            lines.say(f"no report: {errors.first_line(error)}", event="warning")
        else:
            lines.say(f"report: {page}", event="report", page=str(page))


def load(path: str, overrides: Sequence[str]) -> dict[str, "Config"]:
    """The config of each combination of the overrides' values, by its label ("seed=0"). Raises ConfigError."""
    from pipeline import config

    configs = {}
    for mark, combination in sweep(overrides).items():
        try:
            configs[mark] = config.load(path, combination)
        except ConfigError as error:
            raise ConfigError(f"{error}\n{QUOTES}" if mark else str(error)) from None
    for cfg in configs.values():
        check_root(Path(cfg.root))
    return configs


def check_root(root: Path) -> None:
    """Raises ConfigError where the folder of runs has a name that TensorBoard cannot write to."""
    name = str(root.expanduser().resolve())
    if (text := lines.legible(name)) != name:
        raise ConfigError(f"root: {text} is no name in UTF-8: rename that folder, or name another by root=")


def sweep(overrides: Sequence[str]) -> dict[str, list[str]]:
    """Every combination of the values that overrides list: "seed=0,1" -> {"seed=0": [...], "seed=1": [...]}. Commas
    inside brackets and quotes do not separate values. Without a list there is one combination, labelled ""."""
    combinations: dict[str, list[str]] = {"": []}
    for text in overrides:
        key, equals, value = text.partition("=")
        values = split(value) if equals else [value]
        several = len(values) > 1
        combinations = {
            f"{mark} {key}={value}".strip() if several else mark: [*before, f"{key}{equals}{value}"]
            for mark, before in combinations.items()
            for value in values
        }
    return combinations


def split(value: str) -> list[str]:
    """Splits a value at its commas, except inside brackets and quotes. A quote opens only at the start of a word, not
    in "it's"."""
    parts, depth, quote, before = [""], 0, "", ""
    for letter in value:
        if letter == quote:
            quote = ""
        elif letter in "\"'" and not quote and before in ("", *" ,[{(:"):
            quote = letter
        elif not quote:
            depth = max(0, depth + (letter in "[{(") - (letter in ")}]"))
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
        before = letter
    return parts


def open_cluster(selection: Sequence["PlannedStage"], quiet: bool) -> Any:
    """Connects to the Ray cluster, and prints a line about it, if an unfinished stage runs there; else None."""
    if all(p.done or p.place == "here" for p in selection):
        return None
    from pipeline.placement.ray import Cluster

    where = os.environ.get("RAY_ADDRESS", "a local one, which ends with this command")
    if not quiet:
        lines.say(f"Ray cluster: {where}; --here runs every stage in this process")
    return Cluster()
