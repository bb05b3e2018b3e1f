"""The base of every settings model, and the type of a reference from one stage to another."""

import os
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


class Settings(BaseModel):
    """Frozen, and closed: an unknown key is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _from_the_default(cls, given: Any) -> Any:
        """A partly given group starts from the default of its field, wherever it is read: PIRL's `head: {dim: 64}`
        keeps PIRL's hidden: 0, and `objective: {queue: 512}` is of the default kind."""
        if not isinstance(given, dict):
            return given
        fields = {name: info.default for name, info in cls.model_fields.items()}
        return {name: over(fields.get(name), value) for name, value in given.items()}


def over(default: Any, given: Any) -> Any:
    """What was given on top of a default, key by key where both are groups of the same kind; lists as tuples, since no
    setting is a list."""
    if isinstance(given, list):
        return tuple(over(None, value) for value in given)
    if not isinstance(given, dict) or not isinstance(default, Settings):
        return given
    kind = getattr(default, "kind", None)
    if given.get("kind", kind) != kind:
        return given
    usual = {"kind": kind} if kind is not None else {}
    usual |= {name: getattr(default, name) for name in default.model_fields_set}
    return usual | {name: over(usual.get(name), value) for name, value in given.items()}


@dataclass(frozen=True)
class Edge:
    """Marks a field that names another stage; ``needs`` says what that stage has to make."""

    needs: str  # "shards" or "encoder"


ShardsRef = Annotated[str, Edge("shards"), Field(pattern=r"^[a-z0-9_]+$")]
EncoderRef = Annotated[str, Edge("encoder"), Field(pattern=r"^[a-z0-9_]+$")]



def at_home(path: str) -> str:
    """A path with the user's folder in the place of a leading ~."""
    found = os.path.expanduser(path)
    if found.startswith("~"):
        raise ValueError(f"{path}: nobody of that name has a home; a folder that is named so is ./{path}")
    return found


def source_at_home(source: str) -> str:
    """The same for the path in a pack's source."""
    scheme, colon, where = source.partition(":")
    return scheme + colon + at_home(where) if scheme in ("folder", "wds", "shards") else source


FilePath = Annotated[str, AfterValidator(at_home)]
SourceText = Annotated[str, AfterValidator(source_at_home)]

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]
Range = tuple[float, float]
