"""Every objective, small, with a batch for it: what the contract suite and the runs on several ranks go through."""

from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from pipeline import keyed, objectives
from pipeline.image import Image
from pipeline.objectives.base import Batch, Lasso, Objective, Setup
from pipeline.objectives.contrastive import Contrastive
from pipeline.objectives.joint_embeddings import JointEmbedding
from pipeline.settings.densities import (
    CD,
    MPF,
    NCE,
    PCD,
    ConditionalNCE,
    MaximumLikelihood,
    PseudoLikelihood,
    RatioMatching,
)
from pipeline.settings.distillation import BYOL, DINO, SimSiam
from pipeline.settings.joint_embeddings import BarlowTwins, LeJEPA, VICReg
from pipeline.settings.latent_energies import Filters, Latent
from pipeline.settings.nets import CNN, MLP, RBM, Boltzmann, Energy, Net, Norm
from pipeline.settings.objectives import AE, DAE, IWAE, PIRL, PSD, VAE, Decoder, Head, Inputs, MoCo, MoCoV3, SimCLR
from pipeline.settings.objectives import LISTA as LISTASettings
from pipeline.settings.scores import GreyCD, GreyConditionalNCE, GreyPCD, Langevin, ScoreMatching, ShortRun
from pipeline.testing import cases as testing
from pipeline.world import World

IMAGE = Image(channels=1, side=8, mean=(0.3,), std=(0.4,))
SAMPLES = testing.SAMPLES
GLOBAL = Norm()
HEAD = Head(hidden=12, dim=6)
PROJECTOR = Head(hidden=12, dim=6, layers=3, norm="hidden")
NARROW = Decoder(width=16)
CASES = {
    "simclr": SimCLR(head=HEAD, temperature=0.5),
    "simclr_v2": SimCLR(head=PROJECTOR, temperature=0.5),
    "simclr_crops": SimCLR(head=HEAD, temperature=0.5),
    "moco": MoCo(queue=20, momentum=0.9, head=HEAD),
    "moco_symmetric": MoCo(queue=21, momentum=0.9, symmetric=True, head=HEAD),
    "moco_paper": MoCo(queue=20, temperature=0.07, mask_own=False, head=Head(hidden=0, dim=6)),
    "moco_sum": MoCo(
        queue=21,
        momentum=0.9,
        momentum_schedule="cosine",
        symmetric=True,
        reduction="sum",
        head=PROJECTOR,
    ),
    "moco_crops": MoCo(queue=22, momentum=0.9, symmetric=True, head=HEAD),
    "moco_v3": MoCoV3(momentum=0.9, head=Head(hidden=12, dim=6, norm="all"), predictor=Head(hidden=12, dim=6)),
    "moco_v3_crops": MoCoV3(temperature=0.5, momentum=0.9, head=HEAD, predictor=Head(hidden=12, dim=6)),
    "moco_v3_paper": MoCoV3(temperature=0.2, momentum=0.9, mask_own=False, head=HEAD, predictor=None),
    "pirl": PIRL(negatives=16, temperature=0.5, head=Head(hidden=0, dim=6)),
    "pirl_infonce": PIRL(loss="infonce", negatives=0, temperature=0.5, weight=0.3, head=HEAD),
    "pirl_sharded": PIRL(negatives=16, bank="sharded", temperature=0.5, head=Head(hidden=0, dim=6)),
    "pirl_rotation": PIRL(negatives=0, bank="sharded", pretext="rotation", temperature=0.5, head=HEAD),
    "pirl_binary_nce": PIRL(loss="binary_nce", negatives=16, temperature=0.5, head=HEAD),
    "pirl_crops": PIRL(negatives=16, temperature=0.5, weight=0.3, head=Head(hidden=0, dim=6)),
    "pirl_rotation_crops": PIRL(loss="binary_nce", negatives=16, pretext="rotation", temperature=0.5, head=HEAD),
    "byol": BYOL(momentum=0.9, head=HEAD, predictor=Head(hidden=12, dim=6, norm="hidden")),
    "byol_crops": BYOL(momentum=0.9, head=HEAD, predictor=Head(hidden=12, dim=6)),
    "simsiam": SimSiam(head=Head(hidden=12, dim=6, layers=3, norm="all"), predictor=Head(hidden=4, dim=6)),
    "dino": DINO(
        momentum=0.9, prototypes=10, head=Head(hidden=12, dim=6, layers=3, norm="hidden", activation="gelu")
    ),
    "dino_crops": DINO(momentum=0.9, prototypes=10, centre_momentum=0.5, head=HEAD),
    "vicreg": VICReg(invariance=1, variance=1, covariance=0.04, head=PROJECTOR),
    "barlow_twins": BarlowTwins(redundancy=0.1, head=PROJECTOR),
    "lejepa": LeJEPA(slices=16, head=PROJECTOR),
    "lejepa_crops": LeJEPA(weight=0.3, slices=16, points=9, bound=3, head=PROJECTOR),
    "ae": AE(latent=4, decoder=NARROW),
    "dae": DAE(latent=4, decoder=Decoder(kind="conv", width=16)),
    "vae": VAE(latent=4, decoder=NARROW, warmup=0.5),
    "vae_gaussian": VAE(latent=4, decoder=NARROW, likelihood="gaussian", free_bits=0.05, beta=0.7),
    "vae_logistic": VAE(latent=4, decoder=Decoder(width=16, activation="silu"), likelihood="logistic", variance="one"),
    "iwae": IWAE(latent=4, decoder=NARROW, binarisation="dynamic", samples=5, warmup=0.5),
    "iwae_doubly": IWAE(
        latent=4, decoder=NARROW, binarisation="threshold", samples=5, gradient="doubly_reparameterised"
    ),
    "latent": Latent(latent=24, steps=10),
    "latent_half": Latent(
        condition="half", latent=3, decoder=NARROW.model_copy(update={"activation": "silu"}), regulariser="noise",
        cost="bernoulli", steps=8, prediction=0.3,
    ),
    "latent_random": Latent(condition="random", latent=3, regulariser="l2", steps=8),
    "latent_filters": Latent(decoder=Filters(filters=2, side=3), steps=8, prediction=0.5),
    "maximum_likelihood": MaximumLikelihood(),
    "cd": CD(k=2),
    "cd_boltzmann": CD(binarisation="threshold"),
    "pcd": PCD(particles=32, k=2, refresh=0.1),
    "pcd_static": PCD(particles=16, binarisation="static", energy_penalty=1e-3),
    "pseudo_likelihood": PseudoLikelihood(),
    "ratio_matching": RatioMatching(),
    "mpf": MPF(),
    "mpf_energy": MPF(),
    "nce": NCE(),
    "nce_energy": NCE(),
    "nce_model": NCE(model="vae", noise=2, samples=3),
    "conditional_nce": ConditionalNCE(noise=2),
    "grey_conditional_nce": GreyConditionalNCE(noise=2),
    "grey_cd": GreyCD(sampler=Langevin(steps=3, step=0.1, temperature=0.1, bounds="logit"), energy_penalty=1e-3),
    "grey_pcd": GreyPCD(particles=32, refresh=0.1, sampler=Langevin(steps=3, step=0.01, temperature=1e-2)),
    "grey_pcd_short": GreyPCD(particles=48, moved=16, sampler=ShortRun(steps=3, step=1e-5)),
    "score_matching": ScoreMatching(levels=4),
    "score_matching_sliced": ScoreMatching(loss="sliced", levels=1, noise=(0.3, 0.3), energy_penalty=1e-3),
    "lista_energy": LISTASettings(),
    "lista_code": LISTASettings(loss="code", tied=True),
    "lista_coupled": LISTASettings(form="coupled", supervision="all"),
    "lista_analytic": LISTASettings(form="analytic", loss="code"),
    "lista_steps": LISTASettings(form="steps", layers=4),
    "psd": PSD(layers=2, steps=8),
}
NETS = {
    "cd_boltzmann": Boltzmann(),
    "mpf_energy": Energy(trunk=MLP(width=8, layers=1, activation="silu")),
    "grey_conditional_nce": Energy(trunk=MLP(width=8, layers=1)),
    "grey_cd": Energy(trunk=MLP(width=8, layers=1, activation="silu")),
    "grey_pcd": Energy(trunk=MLP(width=8, layers=1, activation="silu"), spectral_norm=True),
    "grey_pcd_short": Energy(trunk=CNN(width=8, depth=2, activation="silu", norm=Norm(kind="none", groups=0))),
    "score_matching": Energy(trunk=MLP(width=8, layers=2, activation="silu"), base="cone"),
    "score_matching_sliced": Energy(trunk=CNN(width=8, depth=2, activation="silu", norm=Norm(kind="none"))),
    "nce_energy": Energy(trunk=CNN(width=8, depth=2, norm=Norm(kind="none"))),
}
"""Other energies than a restricted Boltzmann machine's."""
CROPPED = {
    "simclr_crops", "moco_crops", "moco_v3_crops", "pirl_crops", "pirl_rotation_crops", "byol_crops", "dino_crops",
    "lejepa_crops",
}  # fmt: skip
"""Those that see three small crops of each image as well; where they take more views than two, a third view too."""


def of(family: type[Objective]) -> list[str]:
    """The names of those of a family."""
    return [name for name in CASES if issubclass(objectives.OBJECTIVES[CASES[name].kind], family)]


CONTRASTIVE, JOINT = of(Contrastive), of(JointEmbedding)


def dictionary() -> Tensor:
    """Unit atoms as columns, [10, 24]."""
    return torch.nn.functional.normalize(random(10, 24, seed="atoms"), dim=0)


@cache
def numbers(count: int, seed: int | str) -> np.ndarray:
    return keyed.normal(count, "cases", seed)


def random(*shape: int, seed: int | str = 0) -> Tensor:
    """Standard normal float64 numbers."""
    return torch.from_numpy(numbers(int(torch.Size(shape).numel()), seed).copy()).reshape(shape)


def make(name: str, world, norm: Norm = GLOBAL, seed: int = 0, dtype: torch.dtype = torch.float64) -> Objective:
    """The named objective in training mode."""
    made = objectives.build(CASES[name], setup(name, world, norm, seed, dtype)).to(dtype).train()
    made.cropped = name in CROPPED  # type: ignore[assignment]
    return made


def setup(name: str, world, norm: Norm = GLOBAL, seed: int = 0, dtype: torch.dtype = torch.float64) -> Setup:
    """The same for every objective, but for the net."""
    net: Net = NETS.get(name, RBM(hidden=6)) if CASES[name].energy else CNN(width=8, depth=2, norm=norm)
    noise = autoencoder() if name == "nce_model" and world.device.type != "meta" else None
    return Setup(IMAGE, SAMPLES, net, world, seed, Lasso(dictionary().to(world.device, dtype), 0.2), noise)


def autoencoder() -> Objective:
    """What noise is drawn from."""
    settings = VAE(latent=4, decoder=NARROW, binarisation="dynamic")
    return objectives.build(settings, Setup(IMAGE, SAMPLES, CNN(width=8, depth=2), World.single(device="cpu"), 0))


def batch(
    objective: Objective, ids: list[int], step: int = 0, dtype: torch.dtype = torch.float64, progress: float = 0.25
) -> Batch:
    """Views of samples ids: a function of id and step alone, so that any cut of a batch gives the same."""

    def each(*shape: int, first: int = 0, stride: int = 1) -> Tensor:
        return torch.stack([random(*shape, seed=first + stride * i) for i in ids])

    images = each(1, 8, 8).mul(0.3).add(0.5).clamp(0, 1)
    inputs: Inputs = objective.settings.inputs  # type: ignore[assignment]
    if inputs.signals:
        views = each(10), each(24)
    elif inputs.views == 0:
        views = (images,)
    elif inputs.jigsaw is not None:
        views = images, each(9, 1, 4, 4, first=-1, stride=-1)
    else:
        views = images, images + 0.2 * each(1, 8, 8, first=1000 * (step + 1))
    if getattr(objective, "cropped", False):
        if inputs.more_views:
            views = *views, images + 0.2 * each(1, 8, 8, first=500)
        views = *views, each(3, 1, 4, 4, first=-1, stride=-1)
    views = tuple(view.to(dtype) for view in views)
    return Batch(views, torch.tensor(ids), step=step, epoch=step // 2, seed=7, progress=progress, dtype=dtype)


def warm(objective: Objective, steps: int = 3, dtype: torch.dtype = torch.float64) -> Objective:
    """A few steps' worth of memory: keys, rows and running statistics that are no longer the first ones."""
    return testing.warm(objective, batch, dtype, steps)


def case(name: str, world) -> testing.Case:
    """The named objective for the contract's checks."""
    return testing.Case(partial(make, name), batch, world)
