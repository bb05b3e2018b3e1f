"""pipeline report CONFIG: the page of a config, as one file."""

import argparse
from collections.abc import Sequence

from pipeline.commands import Parser, parse

ABOUT = """Writes report.html, one file that needs no other: which encoder leads and by how much, curves, pictures,
what limited each training, and the commands to go on; and results.json, its numbers. Nothing is run: it says what
there is."""


def main(words: Sequence[str]) -> int:
    parser = Parser(prog="pipeline report", description=ABOUT, allow_abbrev=False)
    parser.add_argument("config", metavar="CONFIG", help="a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="those it was run with, also of a sweep")
    options = parse(parser, words)
    from pipeline import report
    from pipeline.commands.run import Run

    run = Run(argparse.Namespace(config=options.config, overrides=options.overrides, only=[], here=True))
    print(report.write(run.words, run.logs.root, run.every))
    return 0
