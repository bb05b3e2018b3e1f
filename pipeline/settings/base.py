"""The base of every settings model, and the type of a reference from one stage to another."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Mistake = tuple[str, str]
"""A key, dotted where it lies in a nested group, and what is wrong with its value."""


class RuleError(ValueError):
    """Settings of which each is possible, but not all together; ``mistakes``: every rule that they break."""

    def __init__(self, mistakes: list[Mistake]):
        super().__init__("; ".join(f"{key}: {text}" for key, text in mistakes))
        self.mistakes = mistakes


@dataclass(frozen=True)
class Housekeeping:
    """Marks a setting that cannot change a result, only how it is come by and what is kept on the way: a key leaves it
    out, and a stage that is done stays done whatever it says."""


class Settings(BaseModel):
    """Frozen, and closed: an unknown key is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _from_the_default(cls, body: Any) -> Any:
        """A partly given group starts from the default of its field, wherever it is read: PIRL's `head: {dim: 64}`
        keeps PIRL's hidden: 0, and `objective: {queue: 512}` is of the default kind."""
        if not isinstance(body, dict):
            return body
        fields = {name: info.default for name, info in cls.model_fields.items()}
        return {name: over(fields.get(name), value) for name, value in body.items()}

    @model_validator(mode="after")
    def _rules_hold(self):
        if mistakes := list(self.mistakes()):
            raise RuleError(mistakes)
        return self

    def mistakes(self) -> Iterator[Mistake]:
        """The rules about several settings at once that these break. A class with rules of its own yields those
        beside its parents'."""
        yield from ()

    @classmethod
    def housekeeping(cls) -> set[str]:
        """Names of the settings that are marked as such."""
        return {name for name, info in cls.model_fields.items() if Housekeeping() in info.metadata}

    def key_parts(self) -> dict[str, Any]:
        """What the key of an artifact holds of these settings: the kind, and whatever is not as the class has it by
        default, group by group. A setting that comes to a class later therefore changes no key while it is at its
        default, and two settings that differ in more than housekeeping never have the same parts."""
        parts = {}
        for name, info in type(self).model_fields.items():
            part = key_part(getattr(self, name))
            if name not in self.housekeeping() and (name == "kind" or part != key_part(info.default)):
                parts[name] = part
        return parts


def key_part(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.key_parts()
    return [key_part(each) for each in value] if isinstance(value, tuple) else value


def over(default: Any, body: Any) -> Any:
    """What a body says on top of a default, key by key where both are groups of the same kind; lists as tuples, since
    no setting is a list."""
    if isinstance(body, list):
        return tuple(over(None, value) for value in body)
    if not isinstance(body, dict) or not isinstance(default, Settings):
        return body
    kind = getattr(default, "kind", None)
    if body.get("kind", kind) != kind:
        return body
    usual = {"kind": kind} if kind is not None else {}
    usual |= {name: getattr(default, name) for name in default.model_fields_set}
    return usual | {name: over(usual.get(name), value) for name, value in body.items()}


@dataclass(frozen=True)
class Edge:
    """Marks a field that names another stage, which has to make what this one ``needs``. ``prefix``: of the field's
    text, before the stage's name; a text without it, or with more than a name after it, names no stage."""

    needs: str
    prefix: str = ""

    def stage(self, text: str) -> str | None:
        """The stage that the field's text names."""
        name = text.removeprefix(self.prefix)
        return name if text.startswith(self.prefix) and (not self.prefix or re.fullmatch(STAGE, name)) else None


STAGE = r"^[a-z0-9_]+$"


StageName = Annotated[str, Field(pattern=STAGE)]
ShardsRef = Annotated[StageName, Edge("shards")]
ModelRef = Annotated[StageName, Edge("model")]
EncoderRef = Annotated[StageName, Edge("encoder")]


def at_home(path: str) -> str:
    """A path with the user's folder in the place of a leading ~."""
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError(f"{path}: nobody of that name has a home; a folder that is named so is ./{path}")
    return expanded


def source_at_home(source: str) -> str:
    """The same for the path in a pack's source."""
    scheme, colon, where = source.partition(":")
    return scheme + colon + at_home(where) if scheme in ("folder", "wds", "shards") else source


def low_to_high(bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = bounds
    if not 0 < low <= high:
        raise ValueError(f"found [{low}, {high}]; expected [low, high] with 0 < low <= high")
    return bounds


FilePath = Annotated[str, AfterValidator(at_home)]
SourceText = Annotated[str, AfterValidator(source_at_home)]

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]
Range = Annotated[tuple[float, float], AfterValidator(low_to_high)]
