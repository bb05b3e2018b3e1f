"""The commands, a file each: ``main(words) -> exit code``. What they share: a command line whose mistakes are met like
any other of the user's."""

import argparse
import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from pipeline.errors import ConfigError


def path(text: str) -> Path:
    """A path as it was typed; `--out=~/x` reaches us unexpanded."""
    return Path(os.path.expanduser(text))


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text}; expected a whole number of at least 1")
    return int(text)


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
