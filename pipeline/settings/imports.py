"""Kinds that a user's file brings: `imports: [mine.py]` in a config lets `kind: mine:Triplet` name a class in it.

A file is run when a kind first names a class of it, once in a process, under a name that nothing else imports.
Settings of such a class hold the file's text, so that a process on another machine, which may not have the file, runs
the same.
"""

import hashlib
import importlib
import inspect
import linecache
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import SerializeAsAny, ValidationInfo, ValidatorFunctionWrapHandler, create_model

from pipeline import errors, launcher, lines
from pipeline.errors import DataError
from pipeline.hints import nearest

from .base import RuleError, Settings


class Place(NamedTuple):
    """Where a config may name a class of a user's file. ``base``: of such a class; ``settings``: of its settings."""

    base: str
    settings: str


COPIES = "imports"
"""Folder in an artifact of copies of the files that it was made with."""
PLACES = {
    "objective": Place("pipeline.objectives.base:Objective", "pipeline.settings.objectives:Objective"),
    "views": Place("pipeline.views.own:View", "pipeline.settings.data:View"),
    "net": Place("pipeline.nets.trunks:Network", "pipeline.settings.nets:Network"),
}


@dataclass(frozen=True)
class UserFile:
    """A file that a config imports, as it was read. ``name``: what stands before the colon of a kind."""

    name: str
    path: str
    text: str

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def fact(self) -> dict[str, str]:
        """What an artifact records of it."""
        return {"path": self.path, "sha256": self.sha256}


class OfAFile(Settings):
    """Settings of a class in a user's file. ``file``: that; ``made``: the class."""

    file: ClassVar[UserFile]
    made: ClassVar[Any]
    place: ClassVar[str]

    def key_parts(self) -> dict[str, Any]:
        parts = super().key_parts()
        return parts | {"kind": f"{parts['kind']} {self.file.sha256}"}

    def __reduce__(self) -> tuple[Any, ...]:
        body = self.model_dump(mode="json")
        return rebuild, (self.file, self.place, body)


def rebuild(file: UserFile, place: str, body: dict[str, Any]) -> Settings:
    """The settings that another process has pickled."""
    return Imports([file]).model(place, body["kind"]).model_validate(body)


class Imports:
    """The files that a config imports, or those that a trained model was made with, by their names."""

    def __init__(self, files: Iterable[UserFile] = ()):
        self.files = {file.name: file for file in files}
        remember(self.files.values())
        self.models: list[type[Settings]] = []
        """Settings of the classes that were named so far."""

    def model(self, place: str, kind: str) -> Any:
        """The settings of the class that a kind names. Raises RuleError where there is no such class, where it is none
        of the place's, and where its file cannot be run."""
        name, _, title = kind.partition(":")
        if name not in self.files:
            known = nearest(name, self.files, "imports has") if self.files else f"; add imports: [{name}.py]"
            raise RuleError([("kind", f'no file of imports is called "{name}"{known}')])
        found = classes(self.files[name], place)
        if title not in found:
            raise RuleError([("kind", missing(self.files[name], place, title, found))])
        self.models.append(found[title])
        return found[title]


known: dict[str, UserFile] = {}
"""The files that this process has read or was sent, by their hashes."""


def remember(files: Iterable[UserFile]) -> None:
    """Lets models that were made with these files be loaded in this process, wherever the files lie."""
    known.update((file.sha256, file) for file in files)


def read(names: Iterable[str], folder: Path) -> Imports:
    """The files that a config in a folder imports; relative paths start there. Raises ValueError where one is not
    there, is no text, or has the name of another."""
    files: dict[str, UserFile] = {}
    for name in names:
        path = folder / name
        stem = path.stem
        if path.suffix != ".py" or not stem.isidentifier():
            raise ValueError(f'found "{name}"; expected a file whose name is a word and ends in .py')
        if stem in files:
            raise ValueError(f'"{name}" and "{files[stem].path}" are both called {stem}; rename one')
        files[stem] = read_file(path)
    return Imports(files.values())


def read_file(path: Path) -> UserFile:
    """Raises ValueError where it is not there or no text."""
    try:
        return UserFile(path.stem, str(path.resolve()), path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        beside = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise ValueError(f"{path}: no such file{nearest(path.name, beside, 'there are')}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as text: {error}") from None


# ------------------------------------------------------------------------------------------------------------- classes
@cache
def run(file: UserFile) -> ModuleType | str:
    """The module that a file makes, or the line about why it makes none; says that it is run."""
    if launcher.rank() == 0:
        text = f"imports: {file.path} (sha256 {file.sha256[:12]}) is run"
        lines.say(text, event="import", path=file.path, sha256=file.sha256)
    errors.USERS.add(file.path)
    module = ModuleType(f"{file.name}-{file.sha256[:12]}")
    module.__file__ = file.path
    # Where a machine has no such file, tracebacks and docstrings of settings are read from here.
    linecache.cache[file.path] = (len(file.text), None, file.text.splitlines(keepends=True), file.path)
    sys.modules[module.__name__] = module  # pydantic and dataclasses look for a class's module there
    try:
        exec(compile(file.text, file.path, "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        return errors.user_line(error) or f"{file.path}: {type(error).__name__}: {errors.first_line(error)}"
    return module


@cache
def classes(file: UserFile, place: str) -> dict[str, type[OfAFile]]:
    """Settings of a file's classes that a place of a config may name, by the classes' names. Raises RuleError where
    the file cannot be run."""
    module = run(file)
    if isinstance(module, str):
        raise RuleError([("kind", module)])
    base, of = map(named, PLACES[place])
    found = {}
    for title, made in vars(module).items():
        own = inspect.isclass(made) and made.__module__ == module.__name__ and issubclass(made, base)
        if own and isinstance(model := getattr(made, "Settings", None), type) and issubclass(model, of):
            found[title] = of_class(file, place, made, model)
    return found


def of_class(file: UserFile, place: str, made: type, settings: type[Settings]) -> Any:
    """Settings whose kind names a class of a user's file."""
    kind = f"{file.name}:{made.__name__}"
    fields: dict[str, Any] = {"kind": (Literal[kind], kind)}  # type: ignore[valid-type]
    model: Any = create_model(
        settings.__name__, __base__=(OfAFile, settings), __module__=settings.__module__, __doc__=made.__doc__, **fields
    )
    model.file, model.made, model.place = file, made, place
    return model


def named(text: str) -> Any:
    """What "pipeline.objectives.base:Objective" names."""
    module, _, name = text.partition(":")
    return getattr(importlib.import_module(module), name)


def missing(file: UserFile, place: str, title: str, found: Mapping[str, Any]) -> str:
    """Why a file's class cannot be named at a place."""
    made = getattr(run(file), title, None)
    base = PLACES[place].base
    word = base.rpartition(":")[2]
    if made is None:
        names = [f"{file.name}:{name}" for name in found]
        none = "" if names else f"; the file has no class for this place: one is a subclass of pipeline.{word}"
        return f'{file.path} has no "{title}"{nearest(f"{file.name}:{title}", names)}{none}'
    if not inspect.isclass(made) or not issubclass(made, named(base)):
        return f"{title} in {file.path} is no subclass of pipeline.{word}"
    return f"{title} in {file.path} has no settings: expected Settings = a subclass of pipeline.{word}Settings"


# ---------------------------------------------------------------------------------------------------------- validation
AS_IT_IS: Any = SerializeAsAny()  # type: ignore[operator]
"""Has a field's settings written as the class that they are of, which the field's own type need not name."""


def of_file(place: str) -> Any:
    """A validator of the settings at a place, which takes those of a user's class where ``kind`` names one."""

    def validate(body: Any, ours: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        if isinstance(body, OfAFile):
            return body
        kind = body.get("kind") if isinstance(body, dict) else None
        if not isinstance(kind, str) or ":" not in kind:
            return ours(body)
        return imports_of(info).model(place, kind).model_validate(body, strict=True)

    return validate


def imports_of(info: ValidationInfo) -> Imports:
    """The files that the config under validation imports."""
    return info.context if isinstance(info.context, Imports) else Imports()


# ------------------------------------------------------------------------------------------------------ what was used
def used(settings: Any) -> Iterator[UserFile]:
    """The files whose classes some settings name, in groups of them too."""
    if isinstance(settings, OfAFile):
        yield settings.file
    if isinstance(settings, Settings):
        for name in type(settings).model_fields:
            yield from used(getattr(settings, name))
    elif isinstance(settings, tuple):
        for part in settings:
            yield from used(part)


def recall(hashes: Mapping[str, str], folder: Path, facts: Mapping[str, Any]) -> None:
    """Reads the files that a trained model was made with, where this process has not: from where the ``facts`` of its
    artifact's ``folder`` say that they lie. ``hashes``: of each, by name. Raises DataError where one is not there or
    has changed: what it does now is not what the model was trained by."""
    for name, sha256 in hashes.items():
        if sha256 in known:
            continue
        path = Path(facts.get(name, {}).get("path", f"{name}.py"))
        copy = folder / COPIES / f"{name}.py"
        then = f"{folder} was trained with (sha256 {sha256[:12]}; a copy is {copy}): bring it back"
        try:
            file = read_file(path)
        except ValueError as error:
            raise DataError(f"{error}; it is what {then}") from None
        if file.sha256 != sha256:
            raise DataError(f"{path} is another file (sha256 {file.sha256[:12]}) than {then}")
        remember([file])


def recalled(hashes: Mapping[str, str]) -> Imports:
    """The files of these hashes, each of which this process knows."""
    return Imports(known[sha256] for sha256 in hashes.values())
