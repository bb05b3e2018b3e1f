"""What a net can be trained by."""

from typing import Annotated

from pydantic import Field

from .objectives import (
    AE,
    CD,
    DAE,
    MPF,
    NCE,
    PCD,
    PIRL,
    VAE,
    ConditionalNCE,
    MaximumLikelihood,
    MoCo,
    MoCoV3,
    PseudoLikelihood,
    RatioMatching,
    SimCLR,
)
from .scores import ScoreMatching

AnyObjective = Annotated[
    SimCLR
    | MoCo
    | MoCoV3
    | PIRL
    | AE
    | DAE
    | VAE
    | MaximumLikelihood
    | CD
    | PCD
    | PseudoLikelihood
    | RatioMatching
    | MPF
    | NCE
    | ConditionalNCE
    | ScoreMatching,
    Field(discriminator="kind"),
]
"""LISTA is none: it is a part of sparse coding."""
