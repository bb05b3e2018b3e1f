"""The objectives, by the kind that names them in a config."""

from typing import Any

from pipeline.objectives.autoencoders import AE, DAE
from pipeline.objectives.barlow_twins import BarlowTwins
from pipeline.objectives.base import Objective, Setup
from pipeline.objectives.densities import CD, PCD, MaximumLikelihood
from pipeline.objectives.distillation import BYOL, DINO, SimSiam
from pipeline.objectives.grey import GreyCD, GreyPCD
from pipeline.objectives.latent_energies import Latent
from pipeline.objectives.lejepa import LeJEPA
from pipeline.objectives.lista import LISTA, PSD
from pipeline.objectives.moco import MoCo
from pipeline.objectives.moco_v3 import MoCoV3
from pipeline.objectives.neighbours import MPF, PseudoLikelihood, RatioMatching
from pipeline.objectives.noise import NCE, ConditionalNCE, GreyConditionalNCE
from pipeline.objectives.pirl import PIRL
from pipeline.objectives.scores import ScoreMatching
from pipeline.objectives.simclr import SimCLR
from pipeline.objectives.variational import IWAE, VAE
from pipeline.objectives.vicreg import VICReg
from pipeline.settings.imports import OfAFile

OBJECTIVES: dict[str, type[Objective]] = {
    "simclr": SimCLR,
    "moco": MoCo,
    "moco_v3": MoCoV3,
    "pirl": PIRL,
    "byol": BYOL,
    "simsiam": SimSiam,
    "dino": DINO,
    "vicreg": VICReg,
    "barlow_twins": BarlowTwins,
    "lejepa": LeJEPA,
    "ae": AE,
    "dae": DAE,
    "vae": VAE,
    "iwae": IWAE,
    "latent": Latent,
    "maximum_likelihood": MaximumLikelihood,
    "cd": CD,
    "pcd": PCD,
    "pseudo_likelihood": PseudoLikelihood,
    "ratio_matching": RatioMatching,
    "mpf": MPF,
    "nce": NCE,
    "conditional_nce": ConditionalNCE,
    "grey_conditional_nce": GreyConditionalNCE,
    "grey_cd": GreyCD,
    "grey_pcd": GreyPCD,
    "score_matching": ScoreMatching,
    "lista": LISTA,
    "psd": PSD,
}


def of(settings: Any) -> type[Objective]:
    """The class that the settings name: one of ours, or of a user's file."""
    return settings.made if isinstance(settings, OfAFile) else OBJECTIVES[settings.kind]


def build(settings: Any, setup: Setup) -> Objective:
    """The objective that the settings name."""
    return of(settings)(settings, setup)  # type: ignore[call-arg]
