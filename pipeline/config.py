"""Configs: a YAML file and overrides -> frozen settings, or every mistake at once, each with the nearest right name.

A mistake is told as `where: key: what was found; what was expected; did you mean ...?`, where `where` is the file and
line, or the override, that holds it.
"""

import difflib
import json
import math
import re
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from pipeline.errors import ConfigError
from pipeline.settings import stages as kinds
from pipeline.settings.base import Edge, Range, Settings
from pipeline.settings.stages import MAKES, AnyStage, Pack, Stage
from pipeline.settings.training import Training

SOURCES = ("digits", "folder:", "torchvision:", "wds:")
NAME = re.compile(r"[a-z0-9_]+")


class Top(Settings):
    """What a config holds beside its stages."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Of every stage that does not set its own."""
    root: Annotated[str, Field(min_length=1)] = "runs"
    """Folder of all artifacts."""


class Config(Top):
    """A whole run: a graph of named stages."""

    stages: dict[str, AnyStage]


# ------------------------------------------------------------------------------------------------------------ the file
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
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
):
    Yaml.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"), starts)
Yaml.add_constructor("tag:yaml.org,2002:float", number)


@dataclass
class Source:
    """What was read, and where each key of it stands. ``lines``: by path of keys; ``given``: overrides by path."""

    file: str
    data: dict[str, Any] = field(default_factory=dict)
    lines: dict[tuple, int] = field(default_factory=dict)
    given: dict[tuple, str] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)

    def where(self, path: tuple) -> str:
        """The override or the line that the key, or the nearest one above it, comes from."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.given:
                return f"override {self.given[path[:length]]}"
            if path[:length] in self.lines:
                return f"{self.file}:{self.lines[path[:length]]}"
        return self.file

    def wrong(self, path: tuple, text: str) -> None:
        self.mistakes.append(f"{self.where(path)}: {dotted(path)}: {text}" if path else f"{self.file}: {text}")


def dotted(path: tuple) -> str:
    """A key as an override names it: stages by their own names."""
    return ".".join(str(part) for part in (path[1:] if path[0] == "stages" and len(path) > 1 else path))


def nearest(found: Any, known: Iterable[str], listed: str = "expected one of") -> str:
    """"; did you mean "x"?", or the list of what is known where nothing is near."""
    names = [str(k) for k in known]
    close = difflib.get_close_matches(str(found).lower(), names, 1, 0.6)
    if close:
        return f'; did you mean "{close[0]}"?'
    return f"; {listed} {', '.join(names)}" if names else ""


def read(path: str) -> Source:
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
    source = Source(path)
    try:
        loader = Yaml(text)
        node = loader.get_single_node()
        if node is not None:
            note_lines(node, (), source, set())
        value = loader.construct_document(node) if node is not None else None
        json.dumps(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}{parse_error(error)}") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: holds what a config cannot: {error}") from None
    if not isinstance(value, dict):
        found = "nothing" if value is None else show(value)
        raise ConfigError(f"{path}: found {found}; expected keys seed, root and stages")
    source.data = value
    return source


def parse_error(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
    return f"{place}: not YAML: {getattr(error, 'problem', None) or error}"


def beside(file: Path) -> str:
    """"; did you mean "configs/quickstart.yaml"?" for a file that is not there: the nearest YAML file there or in
    configs/."""
    folders = dict.fromkeys([file.parent, Path("configs"), Path(".")])
    files = {p.name: p for f in reversed(folders) if f.is_dir() for p in sorted(f.glob("*.y*ml"))}
    close = difflib.get_close_matches(file.name, files, 1, 0.5)
    if close:
        return f'; did you mean "{files[close[0]]}"?'
    return f"; there are {', '.join(str(p) for p in list(files.values())[:8])}" if files else ""


def note_lines(node: yaml.Node, path: tuple, source: Source, above: set[int]) -> None:
    if id(node) in above:
        raise ValueError(f"line {node.start_mark.line + 1} contains itself")
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            name = str(key.value)
            here = (*path, name)
            source.lines[here] = key.start_mark.line + 1
            if name in seen and name != "<<":
                source.wrong(here, f'the key "{name}" stands here a second time; leave one')
            seen.add(name)
            note_lines(value, here, source, above | {id(node)})
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            source.lines[(*path, i)] = value.start_mark.line + 1
            note_lines(value, (*path, i), source, above | {id(node)})


# ----------------------------------------------------------------------------------------------------------- overrides
def override(source: Source, text: str) -> None:
    """Sets one `stage.key=value`, `seed=value` or `root=value` in what was read; a value is YAML."""
    name, equals, value = text.partition("=")
    path = tuple(name.strip().split("."))
    if not equals or not all(re.fullmatch(r"\w+", part) for part in path):
        stages = source.data.get("stages")
        first = next(iter(stages), "stage") if isinstance(stages, dict) else "stage"
        raise_to = f"expected key=value such as seed=3 or {first}.threads=2"
        source.mistakes.append(f'override "{text}": {raise_to}')
        return
    try:
        loader = Yaml(value)
        node = loader.get_single_node()
        parsed = loader.construct_document(node) if node is not None else None
        json.dumps(parsed)
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        source.mistakes.append(f'override "{text}": the value{parse_error(error)}')  # type: ignore[arg-type]
        return
    stages = source.data.get("stages")
    if path[0] == "stages" and len(path) > 1:
        path = path[1:]
    elif len(path) == 1 and path[0] in Top.model_fields:
        source.data[path[0]] = parsed
        source.given[path] = text
        return
    if not isinstance(stages, dict) or path[0] not in stages:
        known = [*(stages if isinstance(stages, dict) else ()), *Top.model_fields]
        source.mistakes.append(f'override "{text}": no stage "{path[0]}"{nearest(path[0], known)}')
        return
    place = source.data
    for part in (whole := ("stages", *path))[:-1]:
        if not isinstance(place.get(part, {}), dict):
            source.mistakes.append(f'override "{text}": {part} is {show(place[part])}, which has no keys')
            return
        place[part] = dict(place.get(part, {}))  # a copy: an anchor's other users keep theirs
        place = place[part]
    place[whole[-1]] = parsed
    source.given[whole] = text


# ---------------------------------------------------------------------------------------------------------- validation
def load(path: str, overrides: Iterable[str] = ()) -> Config:
    """The config of a file with overrides applied. Raises ConfigError with one line per mistake."""
    source = read(path)
    for text in overrides:
        override(source, text)
    for key in source.data.keys() - Config.model_fields.keys():
        hint = nearest(key, Config.model_fields)
        source.wrong((str(key),), f'unknown key "{key}"{hint}')
    top = check(Top, {k: v for k, v in source.data.items() if k in Top.model_fields}, (), source)
    stages = check_stages(source)
    if source.mistakes:
        raise ConfigError("\n".join(dict.fromkeys(source.mistakes)))
    assert isinstance(top, Top)
    return Config.model_construct(seed=top.seed, root=top.root, stages=stages)


def check_stages(source: Source) -> dict[str, Any]:
    raw = source.data.get("stages")
    if not isinstance(raw, dict) or not raw:
        found = f"found {show(raw)}" if "stages" in source.data else "missing"
        source.wrong(("stages",), f"{found}; expected stages by name, such as shards: {{kind: pack, source: digits}}")
        return {}
    stages = {}
    for name, body in raw.items():
        path = ("stages", name)
        if not isinstance(name, str) or not NAME.fullmatch(name):
            source.wrong(path, f'a stage cannot be named "{name}"; expected small letters, digits and _')
        elif name in Config.model_fields:
            source.wrong(path, f'a stage cannot be named "{name}": that is a key of the config itself')
        stage = check(AnyStage, body, path, source)
        if stage is not None:
            stages[name] = stage
    for name, stage in stages.items():
        check_edges(name, stage, raw, source)
        check_numbers(stage, ("stages", name), source)
    check_cycles(stages, source)
    return stages


def check(model: Any, body: Any, path: tuple, source: Source) -> Any:
    """An instance of the model, or None after noting what is wrong with it."""
    try:
        filled = fill(body, model)
        return TypeAdapter(model).validate_json(json.dumps(filled), strict=True)
    except ValidationError as error:
        for one in error.errors(include_url=False):
            describe(one, model, body, path, source)
        return None


def fill(body: Any, model: Any) -> Any:
    """A partly given group starts from the default of its field: PIRL's `head: {dim: 64}` keeps PIRL's hidden: 0, and
    `objective: {queue: 512}` is of the default kind."""
    model = chosen(model, body)
    if model is None or not isinstance(body, dict):
        return body
    filled = dict(body)
    for name, info in model.model_fields.items():
        given, default = body.get(name), info.default
        if isinstance(given, dict):
            if isinstance(default, Settings):
                kind = {"kind": default.kind} if "kind" in type(default).model_fields else {}  # type: ignore[attr-defined]
                if given.get("kind", kind.get("kind")) == kind.get("kind"):
                    given = kind | default.model_dump(mode="json", exclude_unset=True) | given
            filled[name] = fill(given, info.annotation if not info.metadata else info.annotation)
    return filled


def members(annotation: Any) -> list[type[Settings]]:
    """The settings classes that a field's type allows."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [m for part in get_args(annotation) for m in members(part)]


def tags(model: type[Settings]) -> tuple[str, ...]:
    """Kinds that a class goes by."""
    info = model.model_fields.get("kind")
    return get_args(info.annotation) if info else ()


def chosen(annotation: Any, body: Any) -> type[Settings] | None:
    """The class of a type that a body is meant for: the only one, or the one of its kind."""
    options = members(annotation)
    if len(options) == 1:
        return options[0]
    kind = body.get("kind") if isinstance(body, dict) else None
    return next((m for m in options if kind in tags(m)), None)


def describe(error: Any, model: Any, body: Any, path: tuple, source: Source) -> None:
    """One of pydantic's errors in the user's words: its location without the union's tags, and the nearest name."""
    annotation, at, here = model, body, list(path)
    location = list(error["loc"])
    while location:
        options = members(annotation)
        if len(options) > 1 and not is_sequence(annotation):
            owner = chosen(annotation, at) or chosen(annotation, fill_kind(at, location[0]))
            location.pop(0)
            annotation = owner
            continue
        part = location.pop(0)
        owner = options[0] if options else None
        info = owner.model_fields.get(str(part)) if owner else None
        if error["type"] == "extra_forbidden" and not location:
            source.wrong((*here, part), f'unknown key "{part}"{hint_key(str(part), owner, path, model)}')
            return
        annotation = info.annotation if info else annotation
        at = at.get(part) if isinstance(at, dict) else None
        here.append(part)
    source.wrong(tuple(here), reason(error, annotation))


def fill_kind(body: Any, tag: Any) -> dict:
    return {"kind": tag}


def is_sequence(annotation: Any) -> bool:
    return get_origin(annotation) in (tuple, list)


def hint_key(key: str, owner: type[Settings] | None, path: tuple, model: Any) -> str:
    """Where an unknown key may belong: a near name, the same name one group down, or another kind that has it."""
    if owner is None:
        return ""
    fields = list(owner.model_fields)
    close = difflib.get_close_matches(key.lower(), fields, 1, 0.6)
    if close:
        return f'; did you mean "{close[0]}"?'
    below = [f"{n}.{key}" for n, i in owner.model_fields.items() for m in members(i.annotation) if key in m.model_fields]
    if below:
        return f'; did you mean "{below[0]}"?'
    for rival in rivals(owner):
        if key in rival.model_fields:
            return f"; kind {tags(rival)[0]} has it, {tags(owner)[0]} has {', '.join(fields)}"
    return f"; expected one of {', '.join(fields)}"


def rivals(owner: type[Settings]) -> list[type[Settings]]:
    """Classes that stand beside this one in some union of kinds."""
    unions = [AnyStage] + [i.annotation for m in members(AnyStage) for i in m.model_fields.values()]
    return [m for u in unions if owner in members(u) for m in members(u) if m is not owner]


WORDS = {
    "int_type": "a whole number", "int_from_float": "a whole number", "int_parsing": "a whole number",
    "float_type": "a number", "bool_type": "true or false", "string_type": "text", "tuple_type": "a list [..]",
    "model_type": "keys {..}", "model_attributes_type": "keys {..}", "dict_type": "keys {..}",
    "list_type": "a list [..]",
}  # fmt: skip


def reason(error: Any, annotation: Any) -> str:
    """What was found and what was expected."""
    kind, found, context = error["type"], error.get("input"), error.get("ctx", {})
    if kind == "missing":
        return "missing" + (f"; expected one of {', '.join(all_tags(annotation))}" if all_tags(annotation) else "")
    if kind == "union_tag_not_found":
        return f"kind is missing; expected one of {', '.join(all_tags(annotation))}"
    if kind == "union_tag_invalid":
        return f'unknown kind "{context["tag"]}"{nearest(context["tag"], all_tags(annotation))}'
    if kind == "literal_error":
        options = re.findall(r"'([^']*)'", context.get("expected", ""))
        return f"found {show(found)}{nearest(found, options)}" + listed(found, options)
    if kind in WORDS:
        return f"found {show(found)}; expected {WORDS[kind]}"
    if kind == "string_pattern_mismatch":
        return f"found {show(found)}; expected the name of a stage"
    message = str(error["msg"]).removeprefix("Value error, ").replace("Input should be", "expected")
    return message if kind == "value_error" else f"found {show(found)}; {message[:1].lower()}{message[1:]}"


def listed(found: Any, options: list[str]) -> str:
    near = difflib.get_close_matches(str(found).lower(), options, 1, 0.6)
    return f" (one of {', '.join(options)})" if near and len(options) > 1 else ""


def all_tags(annotation: Any) -> list[str]:
    return [tag for m in members(annotation) for tag in tags(m)]


def show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


# ------------------------------------------------------------------------------------------------- what crosses stages
def edges(stage: Stage) -> Iterator[tuple[str, Edge, str]]:
    """(field, what it needs, stage named there) of every reference to another stage."""
    for name, info in type(stage).model_fields.items():
        for edge in [m for m in marks(info.annotation, info.metadata) if isinstance(m, Edge)]:
            value = getattr(stage, name)
            for ref in value if isinstance(value, tuple) else [value]:
                if ref is not None:
                    yield name, edge, ref


def marks(annotation: Any, metadata: Iterable[Any] = ()) -> Iterator[Any]:
    """Everything a type is annotated with, however deep."""
    yield from metadata
    if get_origin(annotation) is typing.Annotated:
        yield from annotation.__metadata__
    for part in get_args(annotation):
        yield from marks(part)


def needs(stage: Stage) -> list[str]:
    """Stages that this one takes in, each once."""
    return list(dict.fromkeys(ref for _, _, ref in edges(stage)))


def check_edges(name: str, stage: Stage, raw: dict, source: Source) -> None:
    kind_of = {n: b.get("kind") if isinstance(b, dict) else None for n, b in raw.items()}
    for key, edge, ref in edges(stage):
        makers = [n for n in raw if MAKES.get(str(kind_of[n])) == edge.needs and n != name]
        path = ("stages", name, key)
        if ref not in raw:
            source.wrong(path, f'no stage "{ref}"{nearest(ref, makers)}')
        elif kind_of[ref] in MAKES and MAKES[str(kind_of[ref])] != edge.needs:
            makes = MAKES[str(kind_of[ref])]
            source.wrong(path, f'"{ref}" makes {article(makes)}; expected {article(edge.needs)}{offer(makers)}')
    refs = getattr(stage, "encoders", ())
    for ref in {r for r in refs if refs.count(r) > 1}:
        source.wrong(("stages", name, "encoders"), f'"{ref}" is listed twice; leave one')


def article(made: str) -> str:
    return "shards" if made == "shards" else f"an {made}" if made[0] in "aeiou" else f"a {made}"


def offer(makers: list[str]) -> str:
    return f", such as {' or '.join(makers)}" if makers else ", and no stage makes that"


def check_cycles(stages: dict[str, Stage], source: Source) -> None:
    try:
        TopologicalSorter({n: [r for r in needs(s) if r in stages] for n, s in stages.items()}).prepare()
    except CycleError as error:
        ring = list(reversed(error.args[1]))
        source.wrong(("stages", ring[0]), f"needs itself: {' needs '.join(ring)}; break the circle")


def check_numbers(stage: Any, path: tuple, source: Source) -> None:
    """What one field alone cannot tell."""
    place = stage.place
    if isinstance(stage, Training):
        share = stage.accumulate * place.workers
        if stage.batch % share:
            source.wrong((*path, "batch"), (
                f"{stage.batch} does not divide over {place.workers} workers x {stage.accumulate} micro-batches; "
                f"expected a multiple of {share}, such as {max(1, round(stage.batch / share)) * share}"
            ))  # fmt: skip
        if stage.train_examples is not None and stage.train_examples < stage.batch:
            source.wrong((*path, "train_examples"), (
                f"{stage.train_examples} is less than one batch of {stage.batch}; lower batch or raise it"
            ))  # fmt: skip
    elif place.on == "workers" and place.workers > 1:
        source.wrong((*path, "place", "workers"), f"found {place.workers}; a {stage.kind} stage is one process")
    if place.workers > 1 and place.on != "workers":
        source.wrong((*path, "place", "workers"), f"{place.workers} has no effect with on: {place.on}; set on: workers")
    if stage.seed is not None and stage.seed < 0:
        source.wrong((*path, "seed"), f"found {stage.seed}; expected 0 or more")
    check_ranges(stage, path, source)
    if isinstance(stage, Pack):
        check_source(stage, path, source)


def check_ranges(group: Settings, path: tuple, source: Source) -> None:
    for name, info in type(group).model_fields.items():
        value = getattr(group, name)
        if info.annotation == Range and not 0 < value[0] <= value[1]:
            source.wrong((*path, name), f"found {show(value)}; expected [low, high] with 0 < low <= high")
        if isinstance(value, Settings):
            check_ranges(value, (*path, name), source)


def check_source(stage: Pack, path: tuple, source: Source) -> None:
    """Whether a pack's source can be there: the data itself is looked at when it is packed."""
    from pipeline import artifact

    scheme, colon, where = stage.source.partition(":")
    at = (*path, "source")
    if scheme + colon not in SOURCES:
        source.wrong(at, f"found {show(stage.source)}{nearest(scheme + colon, SOURCES)}")
    elif scheme != "digits" and not where:
        source.wrong(at, f"found {show(stage.source)}; expected something after the colon")
    elif scheme == "folder" and not Path(where).expanduser().is_dir():
        what = "is a file, not a folder" if Path(where).is_file() else "no such folder"
        source.wrong(at, f"{where}: {what}{sibling(Path(where).expanduser())}")
    elif scheme == "wds" and not artifact.tars(where):
        source.wrong(at, f"no file matches {where}{sibling(Path(where).expanduser())}")


def sibling(path: Path) -> str:
    """The nearest name to the first part of a path that is not there."""
    while not path.parent.is_dir() and path.parent != path:
        path = path.parent
    if not path.parent.is_dir():
        return ""
    close = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], 1, 0.5)
    return f'; did you mean "{path.parent / close[0]}"?' if close else f"; {path.parent} has no {path.name}"


__all__ = ["Config", "ConfigError", "kinds", "load", "nearest", "needs"]
