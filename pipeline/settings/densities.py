"""The objectives that train an energy of whole images. Defaults are the papers'."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from .base import Count, Fraction, Mistake, ModelRef, Positive, Settings
from .nets import RBM
from .objectives import Inputs, Objective, Variational
from .training import SGD, Adam


class Density(Objective):
    """What all have that train an energy of binary images, p(x) proportional to exp(-E(x))."""

    inputs: ClassVar[Inputs] = Inputs(views=0)
    draws: ClassVar[bool] = True
    energy: ClassVar[bool] = True
    shards: ClassVar[bool] = False
    numbers = {"energy/low": "energy", "energy/gap": "gap"}
    training_defaults = {
        "net": RBM(),
        "optimiser": SGD(lr=0.1, reference_batch=0, momentum=0.0, weight_decay=0.0),
        "epochs": 50,
        "batch": 100,
    }
    binarisation: Literal["dynamic", "static", "threshold"] = "dynamic"
    """dynamic: each pixel is 1 with its grey value as probability, drawn afresh each epoch; static: drawn once for all
    epochs; threshold: 1 above a half. A likelihood under one of them says nothing about another's."""
    energy_penalty: Annotated[float, Field(ge=0)] = 0.0
    """Times the mean squared energy of data, and of what is pushed up, in the loss (Du & Mordatch 2019, arXiv
    1903.08689): keeps energies of a deep net near zero. An RBM needs none."""


class MaximumLikelihood(Density):
    """The log-likelihood itself; its partition function is a sum over all states of the fewer of pixels and hidden
    units, at most 22."""

    kind: Literal["maximum_likelihood"] = "maximum_likelihood"


class CD(Density):
    """Contrastive divergence (Hinton 2002): energies of images against those of chains that start from them."""

    kind: Literal["cd"] = "cd"
    k: Count = 1
    """Gibbs sweeps."""


class PCD(Density):
    """Persistent contrastive divergence (Tieleman 2008): energies of images against those of particles, whose chains
    go on from step to step."""

    kind: Literal["pcd"] = "pcd"
    particles: Count = 500
    """Over all ranks."""
    k: Count = 1
    """Gibbs sweeps a step."""
    refresh: Fraction = 0.0
    """Share of the particles that start anew from noise at a step; 0 for an RBM."""


class Neighbours(Density):
    """What compares each image with those that differ from it in one pixel."""

    training_defaults = Density.training_defaults | {"optimiser": Adam()}


class PseudoLikelihood(Neighbours):
    """Pseudo-likelihood (Besag 1975): the log-probability of each pixel given all others."""

    kind: Literal["pseudo_likelihood"] = "pseudo_likelihood"


class RatioMatching(Neighbours):
    """Ratio matching (Hyvarinen 2007): the squared error of each pixel's probability given all others."""

    kind: Literal["ratio_matching"] = "ratio_matching"


class MPF(Neighbours):
    """Minimum probability flow (Sohl-Dickstein, Battaglino & DeWeese 2011): what flows from data to its neighbours."""

    kind: Literal["mpf"] = "mpf"
    clamp: Positive = 10.0
    """Half the energy by which an image lies above a neighbour, in nats, past which the flow grows as a line and no
    longer as an exponential."""


class Noise(Density):
    """What tells data from noise."""

    training_defaults = Density.training_defaults | {"optimiser": Adam()}
    noise: Count = 1
    """Noise samples for each image."""


class NCE(Noise):
    """Noise-contrastive estimation (Gutmann & Hyvarinen 2010), with log Z a parameter, against independent pixels or
    what an autoencoder draws."""

    kind: Literal["nce"] = "nce"
    noise: Count = 5
    model: ModelRef | None = None
    """The stage that trains a vae or an iwae of the same binarisation, whose samples are the noise: hard to tell from
    images, where independent pixels leave little to learn. Null: independent pixels."""
    samples: Count = 10
    """Of the latent, from which the noise's log-density is estimated: too low in the mean, the more so the fewer."""

    def misfits_of_noise(self, objective: Objective) -> Iterator[Mistake]:
        """What of the objective that trains ``model`` does not go with this one."""
        theirs = getattr(objective, "binarisation", None)
        if not isinstance(objective, Variational) or theirs != self.binarisation:
            kind = getattr(objective, "kind", "")
            yield "objective.model", (
                f'"{self.model}" is trained by {kind}, binarisation {theirs}; expected a vae or an iwae of '
                f"binarisation {self.binarisation}"
            )


class ConditionalNCE(Noise):
    """Conditional noise-contrastive estimation (Ceylan & Gutmann 2018): each image against itself with some pixels
    flipped."""

    kind: Literal["conditional_nce"] = "conditional_nce"
    flips: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the pixels that are flipped, each by itself. Few: nothing to tell; many: too easily told."""


class Likelihood(Settings):
    """How the likelihood of an RBM is estimated where its states are too many to go through, and that of a variational
    autoencoder where its decoder is not linear."""

    samples: Annotated[int, Field(ge=2)] = 5000
    """Draws of the latent of each test image, by an autoencoder's importance sampling."""
    chains: Annotated[int, Field(ge=2)] = 100
    """Of each direction; for the bound, test images that one chain each starts from."""
    temperatures: Count = 4000
    """Steps of annealed importance sampling between independent pixels and the machine."""
    sweeps: Annotated[int, Field(ge=8)] = 100
    """Of the particles before the reverse direction starts from them; split R-hat is of these."""
