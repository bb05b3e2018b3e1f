"""Objectives of continuous densities, whose energies are known by their slopes."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from .base import Mistake, Positive
from .nets import MLP, Energy, ResNet
from .objectives import Inputs, Objective
from .training import Adam


class ScoreMatching(Objective):
    """Score matching (Hyvarinen 2005): slopes of the energies of images with noise on them, from much to little."""

    inputs: ClassVar[Inputs] = Inputs(views=0)
    energy: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    shards: ClassVar[bool] = False
    training_defaults = {
        "net": Energy(trunk=MLP(width=512, layers=3, activation="silu")),
        "optimiser": Adam(),
        "epochs": 100,
        "batch": 128,
        "ema": 0.999,
    }
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
    energy_penalty: Annotated[float, Field(ge=0)] = 0.0
    """Times the mean squared energy of images in the loss; slopes alone leave a constant open."""

    def mistakes(self) -> Iterator[Mistake]:
        yield from super().mistakes()
        least, greatest = self.noise
        if least > greatest:
            yield "noise", f"({least:g}, {greatest:g}): the least is more than the greatest; exchange them"

    def misfits(self, net: Any) -> Iterator[Mistake]:
        """Slopes are trained by second derivatives, which a ReLU's are not."""
        if not isinstance(net, Energy):
            yield "net.kind", f"a {net.kind} is of binary images, which have no slopes; expected an energy"
        elif isinstance(net.trunk, ResNet) or getattr(net.trunk, "activation", "silu") == "relu":
            yield "net.trunk", f"a {net.trunk.kind} of ReLUs has no second derivatives; expected activation: silu"
