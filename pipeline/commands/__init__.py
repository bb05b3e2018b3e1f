"""The commands, one file each, with ``main(words) -> exit code``; and their parser, which raises ConfigError for a
mistake in the command line."""

import argparse
import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from pipeline.errors import ConfigError


def path(text: str) -> Path:
    """A path; "~" is expanded here, since the shell does not in `--out=~/x`."""
    return Path(os.path.expanduser(text))


def positive(text: str) -> int:
    """Parses a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text}; expected a whole number of at least 1")
    return int(text)


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises ConfigError for a mistake."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; {self.format_usage().strip()}")


def parse(parser: Parser, words: Sequence[str]) -> argparse.Namespace:
    """Parses options and positional arguments in any order. Raises ConfigError, for an unknown option with the nearest
    known one."""
    options, unknown = parser.parse_known_intermixed_args(words)
    for word in unknown:
        close = difflib.get_close_matches(word, parser._option_string_actions, 1)
        near = f'; did you mean "{close[0]}"?' if close else f"; {parser.format_usage().strip()}"
        raise ConfigError(f'unknown {"option" if word.startswith("-") else "argument"} "{word}"{near}')
    return options
