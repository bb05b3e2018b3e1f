"""pipeline settings [KIND]: every setting of a kind, with its default, the values it may have, and its meaning."""

import inspect
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pipeline import lines
from pipeline.commands import Parser, parse
from pipeline.errors import ConfigError
from pipeline.hints import nearest
from pipeline.settings import imports
from pipeline.settings.base import RuleError

ABOUT = """Shows every setting of a kind (of stage, objective, net, views, optimiser or source) as a config has it:
with its default, the values that it may have, and what it means. Without KIND: all kinds, a line each. KIND may be a
file of your own (mine.py), which is then run: every class in it that a config can name."""
WORDS = {int: "whole number", float: "number", str: "text", bool: "true | false", type(None): "null"}
SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


@dataclass(frozen=True)
class Kind:
    """What `kind` may say at some place of a config. ``names``: the words for it; ``model``: its settings."""

    place: str
    names: tuple[str, ...]
    about: str
    model: Any


@dataclass(frozen=True)
class Row:
    """A setting. ``path``: its name, dotted where it lies in a group; ``default``: what a config has where it says
    nothing, undefined where it has to say something; ``values``: those it may have, empty for a group whose settings
    follow; ``housekeeping``: it changes no result."""

    path: str
    default: Any
    values: str
    meaning: str
    housekeeping: bool = False

    def text(self, dotted: bool = False) -> str:
        """As a config has it, its meaning below; ``dotted``: as an override has it."""
        before = "  " * (1 if dotted else 1 + self.path.count("."))
        name = f"{before}{self.path if dotted else self.path.rpartition('.')[2]}:"
        head = f"{name + ' ' + text_of(self.default):<32}  # {self.values}" if self.values else name
        text = self.meaning + " Changes no result." * self.housekeeping
        return f"{wrapped(head, '', before + '    # ')}\n{wrapped(text, before + ' ' * 4)}"


def main(words: Sequence[str]) -> int:
    parser = Parser(prog="pipeline settings", description=ABOUT, allow_abbrev=False)
    parser.add_argument("kind", nargs="?", metavar="KIND", help="a kind, such as moco or views.pirl; a place, such as "
                        "objective; or a setting, such as temperature")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="a JSON object a setting, for machines")
    options = parse(parser, words)
    if options.json:
        os.environ["PIPELINE_LOG"] = "json"
    everything, word = list(kinds()), options.kind
    if word and word.endswith(".py"):
        return show(list(kinds_of(Path(word))))
    if found := [k for k in everything if word in {*k.names, *(f"{k.place}.{name}" for name in k.names)}]:
        return show(found)
    if listed := [k for k in everything if word in (None, k.place)]:
        return show(listed) if lines.machine() else list_kinds(listed)
    settings = {row.path.rpartition(".")[2] for kind in everything for row in rows(kind.model)}
    if word in settings:
        return show(everything, word)
    names = [name for k in everything for name in (k.place, *k.names)]
    hints = [nearest(word, known) for known in (dict.fromkeys(names), sorted(settings))]
    hint = next((hint for hint in hints if hint.startswith("; did")), hints[0])
    raise ConfigError(f'no kind and no setting is called "{word}"{hint}')


# --------------------------------------------------------------------------------------------------------------- kinds
def kinds() -> Iterator[Kind]:
    """Every kind, after the config itself in the order in which a config comes to them; once, at its first place."""
    from pipeline import config
    from pipeline.data.sources import SOURCES
    from pipeline.settings.stages import AnyStage, Pack

    yield Kind("config", ("config",), sentence(config.Top), config.Top)
    seen: dict[Any, str] = {}
    for stage in config.members(AnyStage):
        yield Kind("stage", config.tags(stage), sentence(stage), stage)
        for place, model in below(stage):
            seen.setdefault(model, place)
    for place in dict.fromkeys(seen.values()):
        models = [model for model, at in seen.items() if at == place]
        yield from (Kind(place, config.tags(model), sentence(model), model) for model in models)
    for scheme, source in SOURCES.items():
        about = (sys.modules[source.__module__].__doc__ or "").strip()
        yield Kind("source", (scheme.rstrip(":"),), about, Pack)


def kinds_of(path: Path) -> Iterator[Kind]:
    """Every class of a user's file that a config can name. Raises ConfigError where the file cannot be run."""
    from pipeline import config

    try:
        file = imports.read_file(path)
        models = [(place, model) for place in imports.PLACES for model in imports.classes(file, place).values()]
    except RuleError as error:
        raise ConfigError("; ".join(text for _, text in error.mistakes)) from None
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not models:
        bases = " or ".join(f"pipeline.{place.base.rpartition(':')[2]}" for place in imports.PLACES.values())
        raise ConfigError(f"{path} has no class that a config can name: a subclass of {bases} with Settings")
    yield from (Kind(place, config.tags(model), sentence(model), model) for place, model in models)


def below(model: Any) -> Iterator[tuple[str, Any]]:
    """(field, model) of whatever has a kind, however deep in a model."""
    from pipeline import config

    for name in ordered(model):
        models = config.members(model.model_fields[name].annotation)
        for member in models:
            if len(models) > 1:
                yield name, member
            yield from below(member)


def sentence(model: Any) -> str:
    """What a model's docstring begins with."""
    return one_line((model.__doc__ or "").partition("\n\n")[0])


def one_line(text: str) -> str:
    return " ".join(text.split())


# ------------------------------------------------------------------------------------------------------------ settings
def rows(model: Any, default: Any = None, before: str = "", idle: bool = False) -> Iterator[Row]:
    """Every setting of a model, what it adds to its parents first. ``default``: where it stands as a group, the group
    that is there if a config says nothing; ``idle``: the group is housekeeping."""
    from pipeline import config

    for name in ordered(model):
        info, models = model.model_fields[name], config.members(model.model_fields[name].annotation)
        if name == "kind" and len(config.tags(model)) == 1:
            continue
        value = getattr(default, name, info.default)
        housekeeping = idle or name in model.housekeeping()
        yield Row(before + name, value, values(info, models), meaning(model, name), housekeeping)
        if len(models) == 1:
            yield from rows(models[0], value, f"{before}{name}.", housekeeping)


def ordered(model: Any) -> Iterable[str]:
    """Names of the settings: those of the class itself, then its parents'."""
    names = [name for cls in model.__mro__ for name in inspect.get_annotations(cls)]
    return dict.fromkeys(name for name in ("kind", *names) if name in model.model_fields)


def meaning(model: Any, name: str) -> str:
    """What the class says of a setting, or else the nearest parent that does."""
    fields = (getattr(cls, "model_fields", {}).get(name) for cls in model.__mro__)
    return one_line(next((info.description for info in fields if info and info.description), ""))


def plain(value: Any) -> Any:
    """A default as JSON has it: a group by its kind, and by what of it is not its kind's default; null: none."""
    from pydantic_core import PydanticUndefined

    from pipeline.settings.base import Settings

    if isinstance(value, Settings):
        kind = {"kind": value.kind} if "kind" in type(value).model_fields else {}  # type: ignore[attr-defined]
        return kind | {name: plain(getattr(value, name)) for name in sorted(value.model_fields_set)}
    if isinstance(value, tuple):
        return plain(value[0]) if value and isinstance(value[0], Settings) else [plain(part) for part in value]
    return None if value is PydanticUndefined else value


def text_of(value: Any) -> str:
    """A default as a config has it."""
    if "Undefined" in repr(value):
        return "(needed)"
    body = plain(value)
    return f"{body:.6g}" if isinstance(body, float) else re.sub(r'"([^"]*)"', r"\1", json.dumps(body))


def values(info: Any, models: Sequence[Any]) -> str:
    """The values that a setting may have: "whole number ≥ 1 | null"; empty for a group."""
    from pipeline import config

    if len(models) > 1:
        return " | ".join(tag for model in models for tag in config.tags(model))
    found = list(config.marks(info.annotation, info.metadata))
    edges = [mark for mark in found if isinstance(mark, config.Edge) and not mark.prefix]
    if needs := next((edge.needs for edge in edges), None):
        several = get_origin(info.annotation) is tuple
        return f"{'stages, each of which' if several else 'a stage that'} makes {config.article(needs)}"
    words = dict.fromkeys(types(info.annotation, bounds(found)))
    return " | ".join([*words, "keys" * bool(models)] if models and words else words)


def types(annotation: Any, limits: str) -> list[str]:
    """What a type is in words, for each that it may be. ``limits``: of its numbers."""
    if get_origin(annotation) is Literal:
        return [text_of(value) for value in get_args(annotation)]
    inside = [part for part in get_args(annotation) if part is not Ellipsis]
    if get_origin(annotation) is tuple:
        return [f"[{', '.join('number' for _ in inside)}{', …' * (len(inside) == 1)}]"]
    if annotation in WORDS:
        return [WORDS[annotation] + limits * (annotation in (int, float))]
    return [word for part in inside for word in types(part, limits)]


def bounds(found: Iterable[Any]) -> str:
    """The least and the largest value: " ≥ 0, ≤ 1"."""
    found = [inner for mark in found for inner in (mark, *getattr(mark, "metadata", ()))]
    texts = (f"{word} {getattr(m, sign):g}" for sign, word in SIGNS.items() for m in found if hasattr(m, sign))
    return "".join(f" {text}," for text in dict.fromkeys(texts)).rstrip(",")


# ------------------------------------------------------------------------------------------------------------ printing
def list_kinds(found: Sequence[Kind]) -> int:
    width = max(len(", ".join(kind.names)) for kind in found)
    for place in dict.fromkeys(kind.place for kind in found):
        print(f"{place}:")
        for kind in (k for k in found if k.place == place):
            about = textwrap.shorten(kind.about, columns() - width - 4, placeholder=" …")
            print(f"  {', '.join(kind.names):<{width}}  {about}")
    print("pipeline settings KIND: every setting of one, with default and meaning")
    return 0


def show(found: Sequence[Kind], setting: str = "") -> int:
    """Prints the settings of kinds, or of each that has it only the ``setting`` of that name."""
    for kind in found:
        wanted = [row for row in rows(kind.model) if setting in ("", *row.path.split("."))]
        if lines.machine():
            for row in wanted:
                facts = {"place": kind.place, "kinds": kind.names, "setting": row.path, "default": plain(row.default)}
                needed = "Undefined" in repr(row.default)
                facts |= {"needed": needed, "values": row.values, "changes_result": not row.housekeeping}
                lines.say(row.meaning, event="setting", **facts)
        elif wanted:
            print(wrapped(f"{kind.place}: {' or '.join(kind.names)}. {kind.about}{usual(kind.model)}"))
            print(*(row.text(dotted=bool(setting)) for row in wanted), sep="\n", end="\n\n")
    return 0


def usual(model: Any) -> str:
    """What a stage that trains by an objective has where a config says nothing, if that is the objective's."""
    defaults = [f"{name}: {text_of(value)}" for name, value in getattr(model, "training_defaults", {}).items()]
    return f" Its stage's defaults: {', '.join(defaults)}." if defaults else ""


def wrapped(text: str, before: str = "", later: str | None = None) -> str:
    """Text in the terminal's width, its lines after ``before``, all but the first after ``later``."""
    later = before if later is None else later
    return textwrap.fill(text, columns(), initial_indent=before, subsequent_indent=later, break_on_hyphens=False,
                         replace_whitespace=False, drop_whitespace=bool(before or later))  # fmt: skip


def columns() -> int:
    return min(119, shutil.get_terminal_size((119, 24)).columns)
