"""Reads a config file as YAML with line numbers, and collects the mistakes found in it."""

import difflib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import ConfigError
from pipeline.settings import imports
from pipeline.settings.imports import Imports


class Yaml(yaml.SafeLoader):
    """YAML 1.2's scalars: `on` and `no` are words, 1e-3 is a number, 12:30 is a string."""

    yaml_implicit_resolvers: dict = {}


def number(loader: Yaml, node: yaml.ScalarNode) -> float | str:
    value = float(str(node.value))
    return value if math.isfinite(value) else str(node.value)  # 1e999 is no number that a setting can have


for tag, pattern, starts in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9_]*)", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
):
    Yaml.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"), starts)
Yaml.add_constructor("tag:yaml.org,2002:float", number)


@dataclass
class Document:
    """A config as it was read. ``lines``: the line of each key, by its path; ``overrides``: their texts, by path;
    ``imports``: the user's files that it names."""

    file: str
    data: dict[str, Any] = field(default_factory=dict)
    lines: dict[tuple, int] = field(default_factory=dict)
    overrides: dict[tuple, str] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)
    imports: Imports = field(default_factory=Imports)

    def where(self, path: tuple) -> str:
        """The override or the line that the key, or the nearest one above it, comes from."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.overrides:
                return f"override {self.overrides[path[:length]]}"
            if path[:length] in self.lines:
                return f"{self.file}:{self.lines[path[:length]]}"
        return self.file

    def wrong(self, path: tuple, text: str) -> None:
        self.mistakes.append(f"{self.where(path)}: {dotted(path)}: {text}" if path else f"{self.file}: {text}")


def dotted(path: tuple) -> str:
    """A key as an override names it: stages by their own names."""
    return ".".join(str(part) for part in (path[1:] if path[0] == "stages" and len(path) > 1 else path))


def read(path: str) -> Document:
    """Parses the file. Raises ConfigError where it is not there or not YAML; notes keys that stand there twice."""
    file = Path(path)
    if file.is_dir():
        raise ConfigError(f"{path}: is a folder; expected a YAML file{beside(file / 'config.yaml')}")
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file{beside(file)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text: {error}") from None
    document = Document(path)
    try:
        value = parse(text, document)
    except ValueError as error:
        raise ConfigError(f"{path}{error}") from None
    if not isinstance(value, dict):
        value_text = "nothing" if value is None else brief(value)
        raise ConfigError(f"{path}: found {value_text}; expected keys name, seed, root and stages")
    document.data = value
    return document


def read_imports(document: Document, names: Iterable[str] | None) -> None:
    """Reads the user's files that a config names; None where that is a mistake already. Raises ConfigError where they
    are not known: no kind that names a class in one could be checked."""
    try:
        document.imports = imports.read(names or (), Path(document.file).parent)
    except ValueError as error:
        document.wrong(("imports",), str(error))
        names = None
    if names is None and "imports" in document.data:
        raise ConfigError("\n".join(dict.fromkeys(document.mistakes)))


def parse(text: str, document: Document | None = None) -> Any:
    """The value of a YAML text, of JSON's types only. Raises ValueError with ":line:column: reason"."""
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(": holds a name that is not UTF-8: rename it, or give it a link with a name that is")
    try:
        loader = Yaml(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if document is not None:
            note_lines(node, (), document, set())
        value = loader.construct_document(node)
        json.dumps(value)
        return value
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        position = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ValueError(f"{position}: not YAML: {getattr(error, 'problem', None) or error}") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f": holds what a config cannot: {error}") from None


def parse_value(text: str) -> Any:
    """The value of an override: YAML in which # begins no comment, since no comment stands in a value. Raises
    ValueError."""
    value = parse(text)
    node = Yaml(text).get_single_node() if "#" in text else None
    rest = text[node.end_mark.index :] if node else text
    if "#" not in text or not rest.strip():
        return value
    if node is None or (isinstance(node, yaml.ScalarNode) and not node.style):
        return text.strip()
    raise ValueError(f": {rest.strip()} stands after the value; quote all of it, or leave that out")


def beside(file: Path) -> str:
    """ "; did you mean "configs/quickstart.yaml"?" for a file that is not there: the nearest YAML file there or in
    configs/."""
    folders = dict.fromkeys([file.parent, Path("configs"), Path(".")])
    files = {p.name: p for f in reversed(folders) if f.is_dir() for p in sorted(f.glob("*.y*ml"))}
    close = difflib.get_close_matches(file.name, files, 1, 0.5)
    if close:
        return f'; did you mean "{files[close[0]]}"?'
    return f"; there are {', '.join(str(p) for p in list(files.values())[:8])}" if files else ""


def note_lines(node: yaml.Node, path: tuple, document: Document, above: set[int]) -> None:
    if id(node) in above:
        raise ValueError(f"line {node.start_mark.line + 1} contains itself")
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            name = str(key.value)
            here = (*path, name)
            document.lines[here] = key.start_mark.line + 1
            if name in seen and name != "<<":
                document.wrong(here, f'the key "{name}" stands here a second time; leave one')
            seen.add(name)
            note_lines(value, here, document, above | {id(node)})
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            document.lines[(*path, i)] = value.start_mark.line + 1
            note_lines(value, (*path, i), document, above | {id(node)})


def brief(value: Any) -> str:
    """A value as it would be typed, shortened if it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
