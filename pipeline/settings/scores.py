"""Objectives of continuous images: of grey values themselves, which a density of binary images draws bits by."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from .base import Count, Fraction, Mistake, Positive, Settings
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

    @property
    def no_likelihood(self) -> str:
        return f"is trained by {self.kind}: its partition function is not estimated here"  # type: ignore[attr-defined]

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


class Chain(Settings):
    """A Markov chain of Langevin steps on images in [0, 1]."""

    steps: Count = 20
    """Of a chain at a step of the training."""
    bounds: Literal["reflect", "logit", "none"] = "reflect"
    """reflect: pixels are folded back at 0 and 1; logit: chains of log(x / (1 - x)), on which steps are then measured;
    none: pixels have no bounds."""


class Langevin(Chain):
    """Langevin steps x <- x - step dE/dx + sqrt(2 step temperature) N(0, 1)."""

    kind: Literal["langevin"] = "langevin"
    step: Positive = 1.0
    """Of the energy's slope, on pixels between 0 and 1."""
    temperature: Positive = 1e-4
    """T of the density exp(-E / T) that is trained; the noise of a step follows from it. Only the energy's scale
    changes with it: at 1, energies of images come to thousands of nats, which a net is slow to reach."""


class ShortRun(Chain):
    """Steps with a noise of their own, x <- x - step dE/dx + noise N(0, 1), so few that chains do not converge: those
    of IGEBM (Du & Mordatch 2019, arXiv 1903.08689), by which deep energies are usually trained. The temperature that
    they come to, noise^2 / (2 step), is printed: E / T alone would be a log-density, and E is none."""

    kind: Literal["short_run"] = "short_run"
    step: Positive = 10.0
    """Of the energy's slope, on pixels between 0 and 1."""
    noise: Positive = 0.005
    """Its standard deviation."""

    @property
    def temperature(self) -> float:
        return self.noise**2 / (2 * self.step)


class GreyChains(Continuous):
    """What lowers the energies of images and raises those where chains of Langevin steps lead."""

    draws: ClassVar[bool] = True
    numbers = {"energy/low": "energy", "energy/gap": "gap"}
    training_defaults = Continuous.training_defaults | {"optimiser": Adam(lr=1e-3)}
    sampler: Annotated[Langevin | ShortRun, Field(discriminator="kind")] = Langevin()
    """The chains."""
    deviation: Annotated[float, Field(ge=0)] = 0.03
    """Of Gaussian noise on images: without it nothing bounds the slope at pixels that are always black."""

    @property
    def no_likelihood(self) -> str:
        temperature = self.sampler.temperature
        where = f"is trained at temperature {temperature:.3g}: -E is not the log of its density, and has no likelihood"
        return super().no_likelihood if temperature == 1 else where


class GreyCD(GreyChains):
    """Contrastive divergence (Hinton 2002) of continuous images: against chains that start from them."""

    kind: Literal["grey_cd"] = "grey_cd"


class GreyPCD(GreyChains):
    """Persistent contrastive divergence (Tieleman 2008) of continuous images: against particles whose chains go on."""

    kind: Literal["grey_pcd"] = "grey_pcd"
    particles: Count = 512
    """Over all ranks."""
    moved: Count | None = None
    """Particles whose chains go on at a step, others at the next, all in turn; null: all."""
    refresh: Fraction = 0.05
    """Share of the moved that start anew from noise (IGEBM: 0.05)."""

    def mistakes(self) -> Iterator[Mistake]:
        yield from super().mistakes()
        if self.moved and self.particles % self.moved:
            yield "moved", f"{self.moved} does not divide {self.particles} particles"
