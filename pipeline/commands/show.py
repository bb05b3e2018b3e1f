"""pipeline show [RUNS]: what is finished, and the results of its probes."""

from collections.abc import Sequence

from pipeline.commands import Parser, parse


def main(words: Sequence[str]) -> int:
    parser = Parser(prog="pipeline show", description="Results as tables.", allow_abbrev=False)
    parser.add_argument("runs", nargs="?", default="runs", metavar="RUNS", help="folder of artifacts (default: runs)")
    options = parse(parser, words)
    from pipeline import show as tables

    tables.show(options.runs)
    return 0
