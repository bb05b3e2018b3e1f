"""The objectives, by the kind that names them in a config."""

from pipeline.image import Image
from pipeline.objectives.autoencoders import AE, DAE, VAE
from pipeline.objectives.base import Objective
from pipeline.objectives.lista import LISTA
from pipeline.objectives.moco import MoCo
from pipeline.objectives.moco_v3 import MoCoV3
from pipeline.objectives.pirl import PIRL
from pipeline.objectives.simclr import SimCLR
from pipeline.settings.nets import Net
from pipeline.settings.objectives import Contrastive, Generative
from pipeline.world import World

OBJECTIVES: dict[str, type[Objective]] = {
    "simclr": SimCLR,
    "moco": MoCo,
    "moco_v3": MoCoV3,
    "pirl": PIRL,
    "ae": AE,
    "dae": DAE,
    "vae": VAE,
    "lista": LISTA,
}


def build(
    settings: Contrastive | Generative, net: Net | None, image: Image, samples: int, world: World, seed: int
) -> Objective:
    """The objective that the settings name, on images as described. ``net``: the trunk, for contrastive ones;
    ``samples``: how many ids there are, for memories with a row each. LISTA, which learns from signals and a
    dictionary, is made by its own constructor."""
    made = OBJECTIVES[settings.kind](settings, net, image, samples, world, seed)  # type: ignore[call-arg]
    return made
