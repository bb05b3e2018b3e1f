"""Objectives of continuous images: of grey values themselves, which a density of binary images draws bits by."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from .base import Count, Mistake, Positive
from .nets import MLP, Energy, ResNet
from .objectives import Inputs, Objective
from .training import Adam


class Continuous(Objective):
    """What all have that train an energy of continuous images, p(x) proportional to exp(-E(x))."""

    inputs: ClassVar[Inputs] = Inputs(views=0)
    energy: ClassVar[bool] = True
    shards: ClassVar[bool] = False
    training_defaults = {
        "net": Energy(trunk=MLP(width=512, layers=3, activation="silu")),
        "optimiser": Adam(lr=2e-3),
        "epochs": 200,
        "batch": 128,
        "ema": 0.999,
    }
    energy_penalty: Annotated[float, Field(ge=0)] = 0.0
    """Times the mean squared energy of images, and of what is pushed up, in the loss (Du & Mordatch 2019, arXiv
    1903.08689): differences and slopes alone leave a constant open."""

    def misfits(self, net: Any) -> Iterator[Mistake]:
        if not isinstance(net, Energy):
            yield "net.kind", f"a {net.kind} is of binary images; objective {self.kind} expects an energy"  # type: ignore[attr-defined]


class GreyConditionalNCE(Continuous):
    """Conditional noise-contrastive estimation (Ceylan & Gutmann 2018) of continuous images: each against itself with
    Gaussian noise."""

    kind: Literal["grey_conditional_nce"] = "grey_conditional_nce"
    noise: Count = 1
    """Noisy images for each image."""
    deviation: Positive = 0.1
    """Of the noise, on pixels between 0 and 1. Small: nothing to tell; large: too easily told."""


class ScoreMatching(Continuous):
    """Score matching (Hyvarinen 2005): slopes of the energies of images with noise on them, from much to little."""

    draws: ClassVar[bool] = True
    kind: Literal["score_matching"] = "score_matching"
    loss: Literal["denoising", "sliced"] = "denoising"
    """denoising: slopes against the noise itself (Vincent 2011); sliced: curvature along a random direction in its
    place (Song, Garg, Shi & Ermon 2019, arXiv 1905.07088), of the same minimum, with more variance."""
    noise: tuple[Positive, Positive] = (0.03, 1.0)
    """Least and greatest standard deviation of the noise, on pixels between 0 and 1. The greatest should be about
    the distance of images from each other (Song & Ermon 2020, arXiv 2006.09011, technique 1); samples end at the
    least."""
    levels: Annotated[int, Field(ge=1)] = 12
    """Deviations, in equal ratios from the least to the greatest; 1: the least alone."""

    def mistakes(self) -> Iterator[Mistake]:
        yield from super().mistakes()
        least, greatest = self.noise
        if least > greatest:
            yield "noise", f"({least:g}, {greatest:g}): the least is more than the greatest; exchange them"

    def misfits(self, net: Any) -> Iterator[Mistake]:
        """Slopes are trained by second derivatives, which a ReLU has none of."""
        yield from super().misfits(net)
        if isinstance(net, Energy) and (
            isinstance(net.trunk, ResNet) or getattr(net.trunk, "activation", "silu") == "relu"
        ):
            yield "net.trunk", f"a {net.trunk.kind} of ReLUs has no second derivatives; expected activation: silu"
