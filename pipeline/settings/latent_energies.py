"""Objectives with a latent that is inferred: what an image is, given a part of it, is left open by as much as a code
may say."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from .base import Count, Mistake, Settings
from .nets import MLP
from .objectives import Decoder, Inputs, Objective
from .training import Adam


class Linear(Settings):
    """y = W z: a dictionary whose atoms are the columns of W."""

    kind: Literal["linear"] = "linear"


class Filters(Settings):
    """A convolutional dictionary: y is the sum of maps, of an image's size each, convolved with a filter each."""

    kind: Literal["filters"] = "filters"
    filters: Count = 16
    """Filters, each with a map of codes."""
    side: Annotated[int, Field(ge=3)] = 5
    """Of a filter in pixels, an odd number."""

    def mistakes(self) -> Iterator[Mistake]:
        if self.side % 2 == 0:
            yield "side", f"{self.side}: a filter has a pixel in its middle; expected an odd number"


class Latent(Objective):
    """A regularised latent-variable energy, E(x, y, z) = C(y, Dec(Pred(x), z)) + penalty R(z), and the free energy
    F(x, y) = min over z of it (LeCun et al. 2006). x is a part of an image, y the rest; the net is Pred's."""

    inputs: ClassVar[Inputs] = Inputs(views=0)
    draws: ClassVar[bool] = True
    shards: ClassVar[bool] = False
    numbers = {"learn/loss": "loss", "latent/cost": "cost", "latent/nonzero": "nonzero"}
    training_defaults = {"net": MLP(), "optimiser": Adam(), "epochs": 50, "batch": 128}
    kind: Literal["latent"] = "latent"
    condition: Literal["none", "half", "quarter", "random"] = "none"
    """What x is. none: nothing, y is all of the image; half: its left half; quarter: its upper left quarter; random:
    each pixel with a chance of one half, drawn afresh each epoch."""
    cost: Literal["squared", "bernoulli"] = "squared"
    """C. squared: 1/2 ||y - Dec||^2; bernoulli: cross-entropy with grey pixels, of a decoder that gives logits."""
    latent: Count = 16
    """Units of z; not for a decoder of filters, which has a unit for each filter and pixel."""
    decoder: Annotated[Linear | Filters | Decoder, Field(discriminator="kind")] = Linear()
    """Of z and of Pred's features. No column of a weight that z goes through is longer than 1, so that a small z is
    not made large again."""
    regulariser: Literal["l1", "l2", "noise", "none"] = "l1"
    """R. l1: ||z||_1; l2: 1/2 ||z||^2; noise: as l2, and z is decoded with Gaussian noise on it and with the same
    noise subtracted: a ball of fixed width, held by a spring; none: a z with as many units as y makes all energies
    0."""
    penalty: Annotated[float, Field(ge=0)] = 0.1
    """Times R."""
    width: Annotated[float, Field(gt=0)] = 1.0
    """Standard deviation of the noise, for regulariser: noise."""
    steps: Count = 30
    """Of accelerated proximal gradient, by which z is inferred."""
    prediction: Annotated[float, Field(ge=0)] = 0.0
    """Times 1/2 ||z - Enc(x, y)||^2 in the energy, by which an encoder is trained that predicts z, and from which
    inference starts (predictive sparse decomposition, Kavukcuoglu, Ranzato & LeCun 2008); 0: no encoder, and inference
    starts at 0. The encoder is a linear layer on the net's features; of filters it is a convolution."""

    def mistakes(self) -> Iterator[Mistake]:
        yield from super().mistakes()
        changed = {name for name, info in Latent.model_fields.items() if getattr(self, name) != info.default}
        if self.regulariser == "none" and "penalty" in changed:
            yield "penalty", "is of nothing with regulariser: none; leave it out"
        if self.regulariser != "noise" and "width" in changed:
            yield "width", "is for regulariser: noise; leave it out"
        if self.decoder.kind == "filters" and "latent" in changed:
            yield "latent", "a decoder of filters has a unit for each filter and pixel; leave it out"
        if getattr(self.decoder, "activation", "silu") == "relu":
            yield "decoder.activation", "slopes of ReLUs jump, and codes are inferred along slopes; expected silu"
