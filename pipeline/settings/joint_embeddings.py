"""Joint embeddings without negatives: the volume of low energy is limited by a statistic of the batch's embeddings."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from .base import Count, Fraction, Mistake, Positive
from .objectives import Head, Inputs, Objective

Weight = Annotated[float, Field(ge=0)]


class VICReg(Objective):
    """VICReg (arXiv 2105.04906, algorithm 1): deviations of one and covariances of zero, over the global batch."""

    kind: Literal["vicreg"] = "vicreg"
    numbers = Objective.numbers | {"learn/variance_loss": "variance", "learn/covariance_loss": "covariance"}
    invariance: Positive = 25.0
    """Lambda: times the mean squared distance of an image's two embeddings."""
    variance: Weight = 25.0
    """Mu: times what each dimension's deviation lacks of 1, for both views; 0: embeddings may become one point."""
    covariance: Weight = 1.0
    """Nu: times the squared covariances of a dimension with the others, for both views; 0: all may say the same."""
    head: Head = Head(hidden=8192, dim=8192, layers=3, norm="hidden")
    """The expander."""


class BarlowTwins(Objective):
    """Barlow Twins (arXiv 2103.03230, eq. 1): the cross-correlation of the two views' dimensions is the identity."""

    kind: Literal["barlow_twins"] = "barlow_twins"
    numbers = Objective.numbers | {"learn/redundancy_loss": "redundancy"}
    redundancy: Weight = 0.0051
    """Lambda: times the squared correlations of different dimensions; 0: all may say the same."""
    head: Head = Head(hidden=8192, dim=8192, layers=3, norm="hidden")
    """The projector."""


class LeJEPA(Objective):
    """LeJEPA (arXiv 2511.08544, algorithm 2): embeddings of each view are held to a normal distribution (SIGReg)."""

    inputs: ClassVar[Inputs] = Inputs(small_crops=True, more_views=True)
    kind: Literal["lejepa"] = "lejepa"
    numbers = Objective.numbers | {"learn/sigreg": "SIGReg"}
    weight: Fraction = 0.02
    """Lambda: share of SIGReg in the loss, 1 - lambda that of the distance of views; 0: nothing limits the volume
    (0.02 in MINIMAL.md of rbalestr-lab/lejepa)."""
    slices: Count = 1024
    """Random directions of a step along which the distribution is compared (README.md there)."""
    points: Annotated[int, Field(ge=3)] = 17
    """At which characteristic functions are compared, evenly spaced from -bound to bound; an odd number: one at 0."""
    bound: Positive = 5.0
    """The largest of those points."""
    head: Head = Head(hidden=2048, dim=128, layers=3, norm="hidden")
    """The projector (MINIMAL.md: 128 dimensions, 16 for its ten classes)."""

    def mistakes(self) -> Iterator[Mistake]:
        yield from super().mistakes()
        if self.points % 2 == 0:
            yield "points", f"{self.points} is even; expected an odd number"
