"""Checks what the stage of a config trains, a line for each part of the contract."""

import sys

from pipeline import cli, process
from pipeline.errors import ConfigError
from pipeline.lines import say
from pipeline.testing import CONTRACT, case, two_ranks_are_one


def main(words: list[str]) -> int:
    if len(words) < 2:
        raise ConfigError("python -m pipeline.testing CONFIG STAGE [KEY=VALUE ...]: a config and a stage are expected")
    wanted = case(words[0], words[1], *words[2:])
    failed = 0
    for check in (*CONTRACT.values(), two_ranks_are_one):
        try:
            check(wanted)
            say("holds", check.__name__)
        except Exception as error:
            failed += 1
            say(f"BROKEN: {type(error).__name__}: {str(error).strip()}", check.__name__, event="failed")
    return 1 if failed else 0


if __name__ == "__main__":
    process.run(lambda: cli.exit_code(lambda: main(sys.argv[1:])))
