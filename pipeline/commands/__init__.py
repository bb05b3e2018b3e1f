"""The commands, a file each: ``main(words) -> exit code``. What they share: a command line whose mistakes are met like
any other of the user's."""

import argparse
import difflib
from collections.abc import Sequence
from typing import NoReturn

from pipeline.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is an exception like any other of the user's."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; {self.format_usage().strip()}")


def parse(parser: Parser, words: Sequence[str]) -> argparse.Namespace:
    """Options and positions in any order; an unknown option is met with the nearest right one."""
    options, unknown = parser.parse_known_intermixed_args(words)
    for word in unknown:
        close = difflib.get_close_matches(word, parser._option_string_actions, 1)
        near = f'; did you mean "{close[0]}"?' if close else f"; {parser.format_usage().strip()}"
        raise ConfigError(f'unknown {"option" if word.startswith("-") else "argument"} "{word}"{near}')
    return options
