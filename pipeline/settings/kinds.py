"""What a net can be trained by."""

from typing import Annotated, Any, get_args

from pydantic import Field, ValidationInfo, WrapValidator

from .base import RuleError
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
from .distillation import BYOL, DINO, SimSiam
from .imports import AS_IT_IS, imports_of, of_file
from .joint_embeddings import BarlowTwins, LeJEPA, VICReg
from .latent_energies import Latent
from .objectives import AE, DAE, IWAE, PIRL, VAE, MoCo, MoCoV3, Objective, SimCLR
from .scores import GreyCD, GreyConditionalNCE, GreyPCD, ScoreMatching

AnyObjective = Annotated[
    SimCLR
    | MoCo
    | MoCoV3
    | PIRL
    | BYOL
    | SimSiam
    | DINO
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
    AS_IT_IS,
    WrapValidator(of_file("objective")),
]
"""Ours by name, or "mine:Triplet", a class of a file that the config imports. LISTA and PSD are none: they are a part
of sparse coding."""


def training_defaults(objective: Any, info: ValidationInfo) -> dict[str, Any]:
    """What the objective of a body that is not validated yet is usually trained with."""
    if isinstance(objective, Objective):
        return objective.training_defaults
    kind = objective.get("kind") if isinstance(objective, dict) else None
    if isinstance(kind, str) and ":" in kind:
        try:
            return imports_of(info).model("objective", kind).training_defaults
        except RuleError:
            return {}  # which is raised again where the objective itself is validated
    models = get_args(get_args(AnyObjective)[0])
    return next((model.training_defaults for model in models if model.model_fields["kind"].default == kind), {})
