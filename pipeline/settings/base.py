"""The base of every settings model, and the type of a reference from one stage to another."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Frozen, and closed: an unknown key is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True)
class Edge:
    """Marks a field that names another stage; ``needs`` says what that stage has to make."""

    needs: str  # "shards" or "encoder"


ShardsRef = Annotated[str, Edge("shards"), Field(pattern=r"^[a-z0-9_]+$")]
EncoderRef = Annotated[str, Edge("encoder"), Field(pattern=r"^[a-z0-9_]+$")]

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]
Range = tuple[float, float]
