"""What a net can be trained by."""

from typing import Annotated

from pydantic import Field

from .densities import (
    CD,
    MPF,
    NCE,
    PCD,
    ConditionalNCE,
    MaximumLikelihood,
    PseudoLikelihood,
    RatioMatching,
)
from .joint_embeddings import BarlowTwins, LeJEPA, VICReg
from .latent_energies import Latent
from .objectives import AE, DAE, IWAE, PIRL, VAE, MoCo, MoCoV3, SimCLR
from .scores import GreyCD, GreyConditionalNCE, GreyPCD, ScoreMatching

AnyObjective = Annotated[
    SimCLR
    | MoCo
    | MoCoV3
    | PIRL
    | VICReg
    | BarlowTwins
    | LeJEPA
    | AE
    | DAE
    | VAE
    | IWAE
    | Latent
    | MaximumLikelihood
    | CD
    | PCD
    | PseudoLikelihood
    | RatioMatching
    | MPF
    | NCE
    | ConditionalNCE
    | GreyConditionalNCE
    | GreyCD
    | GreyPCD
    | ScoreMatching,
    Field(discriminator="kind"),
]
"""LISTA and PSD are none: they are a part of sparse coding."""
