"""Reads configs: a YAML file and overrides -> frozen settings, or an error with all mistakes and suggested names.

A mistake is reported as `where: key: what was found; what was expected; did you mean ...?`, where `where` is the file
and line, or the override, that holds it.
"""

import copy
import difflib
import json
import re
import typing
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from pipeline.document import Document, brief, parse_value, read, read_imports
from pipeline.errors import ConfigError
from pipeline.hints import nearest
from pipeline.settings.base import Edge, FilePath, RuleError, Settings
from pipeline.settings.stage import Stage
from pipeline.settings.stages import AnyStage, Pack

NAME = re.compile(r"[a-z0-9_]+")


def name_of_folder(name: str) -> str:
    """Raises ValueError where a name is not allowed as a folder's on every system."""
    if not re.fullmatch(r"[\w+-][\w.+-]*", name):
        raise ValueError(f"found {brief(name)}; expected letters, digits, _, +, - and ., the last not in front")
    return name


class Top(Settings):
    """The settings of a config apart from its stages."""

    name: Annotated[str, AfterValidator(name_of_folder)] | None = None
    """What its runs are shown as; in no key. Null: the file's name without its ending."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of every stage that does not set its own."""
    root: Annotated[FilePath, Field(min_length=1)] = "runs"
    """Folder of all artifacts."""
    imports: tuple[str, ...] = ()
    """Files of your own, such as mine.py; relative ones lie beside the config. `kind: mine:Triplet` names a class in
    one, whose hash is in the key."""


class Config(Top):
    """A whole run: a graph of named stages."""

    name: str = ""
    stages: dict[str, AnyStage]


# ----------------------------------------------------------------------------------------------------------- overrides
def override(document: Document, text: str) -> None:
    """Sets one `stage.key=value`, `seed=value`, `name=value` or `root=value` in what was read; a value is YAML."""
    stages = document.data.get("stages")
    names = list(stages) if isinstance(stages, dict) else []
    name, equals, value = text.partition("=")
    parts = name.strip().removeprefix("stages.").split(".")
    try:
        if not equals or not all(re.fullmatch(r"\w+", part) for part in parts):
            raise ValueError(f" expected key=value, such as seed=3 or {[*names, 'stage'][0]}.threads=2")
        parsed = parse_value(value)
        if name in Top.model_fields:
            put(document.data, [name], parsed)
            document.overrides[(name,)] = text
        elif parts[0] in names:
            put(document.data, ["stages", *parts], parsed)
            places = [int(part) if part.isdigit() else part for part in parts[1:]]
            document.overrides[("stages", parts[0], *places)] = text
        else:
            raise ValueError(f' no stage "{parts[0]}"{nearest(parts[0], [*names, *Top.model_fields])}')
    except ValueError as error:
        document.mistakes.append(f'override "{text}":{error}')


def put(group: Any, path: list[str], value: Any) -> None:
    """Sets a value in nested groups and lists, and creates missing groups."""
    for part in path[:-1]:
        key = key_of(group, part)
        below = group.get(key, {}) if isinstance(group, dict) else group[key]
        if not isinstance(below, dict | list):
            raise ValueError(f" {part} is {brief(below)}, which has no keys")
        group[key] = copy.copy(below)  # where a YAML alias shares this group, the others keep theirs
        group = group[key]
    group[key_of(group, path[-1])] = value


def key_of(group: dict | list, part: str) -> str | int:
    """The key that a part of an override names in a group; in a list, its place."""
    if isinstance(group, dict):
        return part
    if not part.isdigit() or int(part) >= len(group):
        raise ValueError(f' "{part}" is no place in a list of {len(group)}; expected 0 to {len(group) - 1}')
    return int(part)


# ---------------------------------------------------------------------------------------------------------- validation
def load(path: str, overrides: Iterable[str] = ()) -> Config:
    """The config of a file with overrides applied. Raises ConfigError with one line per mistake."""
    document = read(path)
    for text in overrides:
        override(document, text)
    for key in document.data:
        if key not in Config.model_fields:
            document.wrong((str(key),), f'unknown key "{key}"{nearest(key, Config.model_fields)}')
    top = check(TypeAdapter(Top), {k: v for k, v in document.data.items() if k in Top.model_fields}, Top, (), document)
    read_imports(document, top.imports if top else None)
    stages = check_stages(document)
    if document.mistakes:
        raise ConfigError("\n".join(dict.fromkeys(document.mistakes)))
    name = top.name or re.sub(r"[^\w.+-]", "_", Path(path).stem).lstrip(".") or "config"
    return Config.model_construct(**top.model_dump() | {"name": name, "stages": stages})


def check_stages(document: Document) -> dict[str, Any]:
    raw = document.data.get("stages")
    if not isinstance(raw, dict) or not raw:
        stages_text = f"found {brief(raw)}" if "stages" in document.data else "missing"
        document.wrong(("stages",), f"{stages_text}; expected stages by name, such as {{shards: {{kind: pack}}}}")
        return {}
    stages, adapter = {}, TypeAdapter(AnyStage)
    for name, body in raw.items():
        path = ("stages", name)
        if not isinstance(name, str) or not NAME.fullmatch(name):
            document.wrong(path, f'a stage cannot be named "{name}"; expected small letters, digits and _')
        elif name in Config.model_fields:
            document.wrong(path, f'a stage cannot be named "{name}": that is a key of the config itself')
        stage = check(adapter, body, AnyStage, path, document)
        if stage is not None:
            stages[name] = stage
    for name, stage in stages.items():
        check_edges(name, stage, raw, document)
        for key, text in stage.mistakes_among(stages):
            document.wrong(("stages", name, *key.split(".")), text)
        if isinstance(stage, Pack):
            check_source(stage, ("stages", name), document)
    check_cycles(stages, document)
    return stages


def check(adapter: TypeAdapter, body: Any, annotation: Any, path: tuple, document: Document) -> Any:
    """The settings in a body, or None after recording its mistakes. They are validated as JSON: pydantic's strict mode
    then accepts no string for a number and no number for a string, but a list for a tuple."""
    try:
        return adapter.validate_json(json.dumps(body), strict=True, context=document.imports)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            describe(problem, annotation, path, document)
        return None


def members(annotation: Any) -> list[type[Settings]]:
    """The settings classes that a field's type allows."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [m for part in get_args(annotation) for m in members(part)]


def tags(model: type[Settings]) -> tuple[str, ...]:
    """The values of ``kind`` that select a class."""
    info = model.model_fields.get("kind")
    return get_args(info.annotation) if info else ()


def by_kind(annotation: Any) -> dict[str, Any]:
    """The settings class of each kind that a field's type allows."""
    return {tag: model for model in members(annotation) for tag in tags(model)}


def describe(error: Any, annotation: Any, path: tuple, document: Document) -> None:
    """One of pydantic's errors in the user's words. Its location names keys and, at each union, the kind that was
    chosen: the kinds lead to the class, and are left out of what is shown."""
    owner, location = None, list(error["loc"])
    while location:
        part = location.pop(0)
        if isinstance(part, int):  # where one mapping stands for a list of one, it has no index
            path = (*path, part) if isinstance(value_at(document.data, path), list) else path
            continue
        options = members(annotation)
        if len(options) > 1 and isinstance(part, str):
            annotation = owner = next((m for m in options if part in tags(m)), None)
            if owner is None:  # a user's class, whose kind is not in the location
                kind = value_at(document.data, (*path, "kind"))
                annotation = owner = next(m for m in document.imports.models if kind in tags(m))
                location.insert(0, part)
            continue
        owner = options[0] if options else owner
        info = owner.model_fields.get(str(part)) if owner else None
        annotation, path = info.annotation if info else None, (*path, part)
    broken = error.get("ctx", {}).get("error")
    if isinstance(broken, RuleError):
        for key, text in broken.mistakes:
            document.wrong((*path, *key.split(".")), text)
    elif error["type"] == "extra_forbidden" and owner is not None:
        document.wrong(path, f'unknown key "{path[-1]}"{hint_key(str(path[-1]), owner)}')
    elif error["type"].startswith("union_tag"):
        document.wrong((*path, "kind"), reason(error, annotation))
    else:
        document.wrong(path, reason(error, annotation))


def value_at(value: Any, path: tuple) -> Any:
    """The value at a path of keys; None where there is none."""
    for part in path:
        inside = isinstance(value, dict) or (isinstance(value, list) and isinstance(part, int))
        value = value[part] if inside and (part in value if isinstance(value, dict) else part < len(value)) else None
    return value


def hint_key(key: str, owner: type[Settings]) -> str:
    """Where an unknown key may belong: a near name, the same name one group down, or another kind that has it."""
    fields = list(owner.model_fields)
    if difflib.get_close_matches(key.lower(), fields, 1, 0.6):
        return nearest(key, fields)
    for name, info in owner.model_fields.items():
        if any(key in m.model_fields for m in members(info.annotation)):
            return f'; did you mean "{name}.{key}"?'
    for rival in rivals(owner):
        if key in rival.model_fields:
            return f"; kind {tags(rival)[0]} has it, kind {tags(owner)[0]} has {', '.join(fields)}"
    return nearest(key, fields)


def rivals(owner: type[Settings]) -> list[type[Settings]]:
    """The other classes of the unions of kinds that contain this one."""
    unions = [AnyStage] + [i.annotation for m in members(AnyStage) for i in m.model_fields.values()]
    return [m for u in unions if owner in members(u) for m in members(u) if m is not owner]


WORDS = {
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "bool_type": "expected true or false",
    "string_type": "expected text",
    "tuple_type": "expected a list [..]",
    "model_type": "expected keys {..}",
}


def reason(error: Any, annotation: Any) -> str:
    """What was found and what was expected."""
    kind, value, context = error["type"], error.get("input"), error.get("ctx", {})
    known = [tag for m in members(annotation) for tag in tags(m)]
    if kind in ("missing", "union_tag_not_found"):
        return "missing" + (f"; expected one of {', '.join(known)}" if known else "; it has no default")
    if kind == "union_tag_invalid":
        return f'unknown kind "{context["tag"]}"{nearest(context["tag"], known)}'
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"])
        return f"found {brief(value)}{nearest(value, known)}"
    if kind == "string_pattern_mismatch":
        return f"found {brief(value)}; expected the name of a stage"
    if kind == "value_error":
        return str(context["error"])
    message = str(error["msg"]).replace("Input should be", "expected").replace("an object", "keys {..}")
    return f"found {brief(value)}; {WORDS.get(kind) or message[:1].lower() + message[1:]}"


# ------------------------------------------------------------------------------------------------- what crosses stages
def edges(group: Settings, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Edge, str]]:
    """(path, what it needs, stage named there) of every reference to another stage, in groups of settings too."""
    for name, info in type(group).model_fields.items():
        value = getattr(group, name)
        if isinstance(value, Settings):
            yield from edges(value, (*above, name))
            continue
        for edge in [m for m in marks(info.annotation, info.metadata) if isinstance(m, Edge)]:
            for text in value if isinstance(value, tuple) else [value]:
                if text is not None and (ref := edge.stage(text)) is not None:
                    yield (*above, name), edge, ref


def marks(annotation: Any, metadata: Iterable[Any] = ()) -> Iterator[Any]:
    """Everything a type is annotated with, however deep."""
    yield from metadata
    if get_origin(annotation) is typing.Annotated:
        yield from annotation.__metadata__
    for part in get_args(annotation):
        yield from marks(part)


def needs(stage: Stage) -> list[str]:
    """The stages that this one needs, each once."""
    return list(dict.fromkeys(ref for _, _, ref in edges(stage)))


def check_edges(name: str, stage: Stage, raw: dict, document: Document) -> None:
    """Records a mistake for every reference to a stage that does not exist or does not make what is needed. A stage
    with mistakes of its own still has its kind, which says what it makes."""
    models = by_kind(AnyStage)
    kinds = {n: models.get(str(b.get("kind"))) for n, b in raw.items() if isinstance(b, dict)}
    made = {n: kind.makes for n, kind in kinds.items() if kind and issubclass(kind, Stage)}
    for key, edge, ref in edges(stage):
        makers = [n for n, things in made.items() if edge.needs in things and n != name]
        path = ("stages", name, *key)
        if ref not in raw:
            document.wrong(path, f'no stage "{ref}"{nearest(ref, makers)}')
        elif edge.needs not in made.get(ref, (edge.needs,)):
            things = " and ".join(map(article, made[ref]))
            document.wrong(path, f'"{ref}" makes {things}; expected {article(edge.needs)}{offer(makers)}')


def article(made: str) -> str:
    return "shards" if made == "shards" else f"an {made}" if made[0] in "aeiou" else f"a {made}"


def offer(makers: list[str]) -> str:
    return f", such as {' or '.join(makers)}" if makers else ", and no stage makes that"


def check_cycles(stages: dict[str, Stage], document: Document) -> None:
    try:
        TopologicalSorter({n: [r for r in needs(s) if r in stages] for n, s in stages.items()}).prepare()
    except CycleError as error:
        ring = list(reversed(error.args[1]))
        document.wrong(("stages", ring[0]), f"needs itself: {' needs '.join(ring)}; break the circle")


def check_source(stage: Pack, path: tuple, document: Document) -> None:
    """Records a mistake where a pack's source cannot exist. The data itself is read when it is packed."""
    from pipeline.data import sources

    at, source = (*path, "source"), sources.find(stage)
    scheme, colon, where = stage.source.partition(":")
    if source is None:
        folder = Path(stage.source).expanduser().is_dir()
        near = f'; did you mean "folder:{stage.source}"?' if folder else nearest(scheme + colon, sources.SOURCES)
        document.wrong(at, f"found {brief(stage.source)}{near}")
    elif colon and not where:
        document.wrong(at, f"found {brief(stage.source)}; expected something after the colon")
    elif problem := source.problem():
        document.wrong(at, problem)
