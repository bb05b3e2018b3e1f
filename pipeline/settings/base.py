"""The base of every settings model, and the type of a reference from one stage to another."""

import os
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Frozen, and closed: an unknown key is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


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
