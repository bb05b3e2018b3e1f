"""Self-distillation: objectives without negatives, in which a network predicts what it, or an average of it, makes of
another view of the same image. Defaults are the papers'."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from .base import Count, Fraction, Mistake, Positive
from .objectives import Head, Inputs, MomentumEncoder, Objective, mistakes_of_predictor

ANY_VIEWS = Inputs(small_crops=True, more_views=True)


class BYOL(MomentumEncoder):
    """BYOL (arXiv 2006.07733, eq. 2): a predictor's output against a momentum encoder's, both directions."""

    inputs: ClassVar[Inputs] = ANY_VIEWS
    kind: Literal["byol"] = "byol"
    momentum: Fraction = 0.996
    momentum_schedule: Literal["constant", "cosine"] = "cosine"
    head: Head = Head(hidden=4096, dim=256, norm="hidden")
    """The projection g of the paper."""
    predictor: Head | None = Head(hidden=4096, dim=256, norm="hidden")
    """The paper's q; null: removed, and the embeddings collapse."""

    def mistakes(self) -> Iterator[Mistake]:
        yield from super().mistakes()
        yield from mistakes_of_predictor(self.head, self.predictor)


class SimSiam(Objective):
    """SimSiam (arXiv 2011.10566, eq. 2): a predictor's output against the encoder's own of the other view, through
    which no gradient flows."""

    inputs: ClassVar[Inputs] = ANY_VIEWS
    kind: Literal["simsiam"] = "simsiam"
    head: Head = Head(hidden=2048, dim=2048, layers=3, norm="all")
    """The last layers of the paper's encoder f."""
    predictor: Head | None = Head(hidden=512, dim=2048, norm="hidden")
    """The paper's h; null: removed, and the embeddings collapse."""
    predictor_lr: Literal["constant", "scheduled"] = "constant"
    """constant: the predictor's learning rate stays at the peak of the others' (the last row of the paper's table
    1)."""
    stop_gradient: bool = True
    """false: the gradient flows through the targets too, and the embeddings collapse (sec. 4.1)."""

    def mistakes(self) -> Iterator[Mistake]:
        yield from super().mistakes()
        yield from mistakes_of_predictor(self.head, self.predictor)


class DINO(MomentumEncoder):
    """DINO (arXiv 2104.14294, algorithm 1): cross-entropy between a momentum encoder's distribution over prototypes,
    centred and sharpened, and the encoder's own of every other view."""

    inputs: ClassVar[Inputs] = ANY_VIEWS
    kind: Literal["dino"] = "dino"
    momentum: Fraction = 0.996
    momentum_schedule: Literal["constant", "cosine"] = "cosine"
    temperature: Positive = 0.1
    """Divides the cosines with the prototypes before the encoder's softmax."""
    teacher_temperature: Positive = 0.07
    """The same for the momentum encoder's, which it sharpens."""
    first_teacher_temperature: Positive = 0.04
    """From which that rises linearly at the start."""
    teacher_warmup: Fraction = 0.1
    """Share of training over which it does: 30 epochs of 300."""
    centre_momentum: Fraction = 0.9
    """Of the centre, which is taken off the momentum encoder's outputs: centre <- momentum centre + (1 - momentum)
    mean of the global batch. 1: it stays at 0, and the embeddings collapse."""
    prototypes: Count = 65536
    """Units of the last layer, whose weights have length 1."""
    frozen_steps: int = Field(default=0, ge=0)
    """Steps at the start in which the prototypes are not trained: one epoch in the authors' code."""
    head: Head = Head(hidden=2048, dim=256, layers=3, activation="gelu")
    """From the features to the bottleneck, whose rows have length 1."""
