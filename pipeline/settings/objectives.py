"""The objectives: an energy that goes down on data and up, or is bounded, elsewhere. Defaults are the papers'."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from .base import Count, Fraction, Mistake, Positive, Settings
from .nets import MLP, Activation
from .training import Adam


class Jigsaw(Settings):
    """The nine patches (arXiv 1912.01991, sec. 3.3): crop, grid of cells, a jittered patch from each, shuffled."""

    cells: Annotated[int, Field(ge=2, le=5)] = 3
    """Cells on a side."""
    cell: Count | None = None
    """Side of a cell in pixels; null: 85 for views of 160 pixels and more, below that in proportion (10 at 32)."""
    patch: Count | None = None
    """Side of a patch in pixels; null: 3/4 of the cell, rounded (64 of 85)."""
    scale: tuple[float, float] = (0.6, 1.0)
    """Area of the crop that is cut into cells."""

    def geometry(self, side: int) -> tuple[int, int]:
        """Sides of a cell and of a patch, in pixels of the crop, for views of ``side`` pixels.

        85 and 64 from 160 pixels on, as published; below, cells of a third of the side (never under 5) and patches of
        three quarters of a cell: 10 and 8 at 32 pixels, 5 and 4 at 8.
        """
        cell = self.cell or (85 if side >= 160 else max(5, side // 3))
        return cell, self.patch or (64 if cell == 85 else round(0.75 * cell))


@dataclass(frozen=True)
class Inputs:
    """What an objective is given of each sample. ``views``: random views; 0: the image itself, its pixels in [0, 1].
    ``jigsaw``: its patches take the place of the second view. ``small_crops``: it also takes small crops, where the
    views have any. ``more_views``: it takes any number of views from two on. ``signals``: vectors that a stage makes
    of images, and no image."""

    views: int = 2
    jigsaw: Jigsaw | None = None
    small_crops: bool = False
    more_views: bool = False
    signals: bool = False


class Objective(Settings):
    """The facts of an objective."""

    inputs: ClassVar[Inputs] = Inputs()
    energy: ClassVar[bool] = False
    """Whether its net is an energy of images; else it is a trunk."""
    draws: ClassVar[bool] = False
    """Whether a trained one draws pictures (`generate`)."""
    shards: ClassVar[bool] = True
    """Whether its weights may be sharded: all of them lie in networks that are called as wholes."""
    numbers: ClassVar[dict[str, str]] = {"learn/loss": "loss", "collapse/directions": "directions"}
    """The scalars that say how a training has ended, each with the word for it; those that it has not are left out."""
    training_defaults: ClassVar[dict[str, Any]] = {}
    """What a stage that trains it is given where nothing else is said."""

    @property
    def no_likelihood(self) -> str:
        """Why nothing that it trains has a likelihood, in words; empty where it may have one."""
        return ""

    def misfits(self, net: Any) -> Iterator[Mistake]:
        """What of a net, of those that give what it trains, it cannot train."""
        yield from ()


class Head(Settings):
    """The projection between the trunk and the space in which energies are measured."""

    hidden: Annotated[int, Field(ge=0)] = 2048
    """Units of the hidden layers; 0: one linear layer (MoCo v1, PIRL)."""
    dim: Count = 128
    """Dimensions of an embedding."""
    layers: Annotated[int, Field(ge=2, le=4)] = 2
    """Linear layers where there are hidden ones; 3 in SimCLR v2 (arXiv 2006.10029)."""
    norm: Literal["none", "hidden", "all", "scaled"] = "none"
    """Batch norm, of the trunk's kind, after the hidden layers; all: after the last too, there without scale and shift
    (MoCo v3); scaled: after the last too, there with a scale and without a shift (SimCLR's code)."""
    activation: Literal["relu", "gelu"] = "relu"
    """After each hidden layer."""


def mistakes_of_predictor(head: Head, predictor: Head | None) -> Iterator[Mistake]:
    """A predictor's output is compared with another view's projection."""
    if predictor is not None and predictor.dim != head.dim:
        yield "predictor.dim", f"{predictor.dim} is not the {head.dim} of head.dim, which it predicts"


class SimCLR(Objective):
    """SimCLR's NT-Xent (arXiv 2002.05709, eq. 1) over both views of the whole global batch."""

    inputs: ClassVar[Inputs] = Inputs(small_crops=True)
    kind: Literal["simclr"] = "simclr"
    temperature: Positive = 0.1
    """Divides the similarities, -1 to 1, before the softmax (0.1 or 0.5 in the paper, table 5)."""
    head: Head = Head()
    """The projection head g of the paper."""


class MomentumEncoder(Objective):
    """An exponential moving average of the encoder that gives the keys: key <- momentum key + (1 - momentum) query."""

    momentum: Fraction = 0.999
    """Share of the key encoder's weights that stays at each step."""
    momentum_schedule: Literal["constant", "cosine"] = "constant"
    """cosine: rises to 1 as 1 - (1 - momentum) (1 + cos(pi progress)) / 2 (BYOL, arXiv 2006.07733; MoCo v3)."""


class MoCo(MomentumEncoder):
    """MoCo (arXiv 1911.05722, eq. 1; v2: arXiv 2003.04297): a query against a key and a queue of older keys."""

    inputs: ClassVar[Inputs] = Inputs(small_crops=True)
    kind: Literal["moco"] = "moco"
    temperature: Positive = 0.2
    """Divides the similarities, -1 to 1, before the softmax: 0.2 in v2; 0.07 in v1."""
    queue: Count = 65536
    """Keys kept; any number, whatever the batch."""
    symmetric: bool = False
    """Both views query both, each the other's key; both key sets are enqueued after both losses."""
    reduction: Literal["mean", "sum"] = "mean"
    """Of the two symmetric losses. The authors' colab sums them, which is twice the learning rate of a mean."""
    mask_own: bool = True
    """A key of the query's own image is never its negative, nor a random row the queue started with; false: both are,
    as in the paper."""
    head: Head = Head()
    """v2's two layers; hidden 0 is v1's one."""


class MoCoV3(MomentumEncoder):
    """MoCo v3 (arXiv 2104.02057, algorithm 1): predictor, no queue, the batch's keys as negatives, both directions."""

    inputs: ClassVar[Inputs] = Inputs(small_crops=True)
    kind: Literal["moco_v3"] = "moco_v3"
    temperature: Positive = 1.0
    """Divides the similarities, -1 to 1, before the softmax: 1.0 for ResNet-50, 0.2 for ViT; the loss is scaled by
    twice it."""
    momentum: Fraction = 0.99
    momentum_schedule: Literal["constant", "cosine"] = "cosine"
    mask_own: bool = True
    """A key of the query's own image, where it is in the batch twice, is not its negative; false: as in the paper."""
    head: Head = Head(hidden=4096, dim=256, norm="all")
    """Of queries and keys; three layers for a ViT."""
    predictor: Head | None = Head(hidden=4096, dim=256, norm="hidden")
    """On top of the queries' head; null: removed."""

    def mistakes(self) -> Iterator[Mistake]:
        yield from super().mistakes()
        yield from mistakes_of_predictor(self.head, self.predictor)


class PIRL(Objective):
    """PIRL (arXiv 1912.01991): image and shuffled patches, both against the image's row in a memory bank."""

    kind: Literal["pirl"] = "pirl"
    loss: Literal["nce", "infonce", "binary_nce"] = "nce"
    """nce: the paper's eq. 4; infonce: softmax over the bank; binary_nce: vissl's, with a partition fixed on the
    first batch (collapses on small sets: kept for comparison)."""
    temperature: Positive = 0.07
    """Divides the similarities, -1 to 1 (0.07 in the paper)."""
    weight: Fraction = 0.5
    """Lambda of eq. 5: share of the patches' term."""
    momentum: Fraction = 0.5
    """Of the memory: row <- normalise(momentum row + (1 - momentum) f(image))."""
    negatives: int = 32000
    """Rows of the bank drawn a step, shared by the batch; 0: all rows, exactly."""
    bank: Literal["replicated", "sharded"] = "replicated"
    """replicated: every rank holds all rows; sharded: each those with id mod ranks its own, to the same results."""
    pretext: Literal["jigsaw", "rotation"] = "jigsaw"
    """rotation: the second view turned by 0, 90, 180 or 270 degrees in place of patches (sec. 4.4 of the paper)."""
    mask_own: bool = True
    """The image's own row is never its negative; false: it may be drawn, as in the paper."""
    head: Head = Head(hidden=0)
    """Of f and, per patch, of g; g then joins its patches by one more linear layer. hidden 2048: the MLP variant."""
    jigsaw: Jigsaw = Jigsaw()
    """How the patches are cut, for pretext: jigsaw."""

    @property
    def inputs(self) -> Inputs:
        return Inputs(jigsaw=self.jigsaw if self.pretext == "jigsaw" else None, small_crops=True)


class Decoder(Settings):
    """The way back from a latent to an image."""

    kind: Literal["mlp", "conv"] = "mlp"
    """mlp: fully connected layers; conv: a linear layer, then 3x3 convolutions between enlargements by two."""
    width: Count = 256
    """Units of the hidden layers (mlp) or channels of the smallest image (conv)."""
    layers: Annotated[int, Field(ge=0, le=8)] = 2
    """Hidden layers (mlp) or enlargements by two (conv); 0: a linear decoder."""
    activation: Activation = "relu"
    """After each hidden layer."""


class AutoEncoder(Objective):
    """What all autoencoders have. Their net takes pixels in [0, 1]; a linear layer makes its features a latent."""

    inputs: ClassVar[Inputs] = Inputs(views=0)
    draws: ClassVar[bool] = True
    shards: ClassVar[bool] = False
    training_defaults = {"net": MLP(), "optimiser": Adam(), "epochs": 50, "batch": 128}
    latent: Count = 16
    """Units of the latent."""
    decoder: Decoder = Decoder()
    """From the latent to pixels."""


class AE(AutoEncoder):
    """Autoencoder: energy of an image is its squared reconstruction error."""

    kind: Literal["ae"] = "ae"


class DAE(AutoEncoder):
    """Denoising autoencoder: || y - f(y + noise) ||^2, trained on corrupted images."""

    kind: Literal["dae"] = "dae"
    latent: Count = 64
    noise: Positive = 0.3
    """Standard deviation of the Gaussian noise on pixels between 0 and 1."""


class Variational(AutoEncoder):
    """A latent whose draws are told from noise only as far as the decoder needs it: bounds of log p(x), summed over
    pixels and units, mean over the batch."""

    numbers = {"learn/loss": "loss", "vae/kl": "KL", "vae/active_units": "active units"}
    likelihood: Literal["bernoulli", "gaussian", "logistic"] = "bernoulli"
    """bernoulli: binary pixels; gaussian: a density of grey ones, with one learned sigma; logistic: a probability of
    their 256 levels, with one learned scale."""
    binarisation: Literal["none", "dynamic", "static", "threshold"] = "none"
    """Of pixels for bernoulli. dynamic: each is 1 with its grey value as probability, drawn afresh each epoch; static:
    drawn once for all epochs; threshold: 1 above a half; none: grey pixels, of which bernoulli is a continuous
    relaxation and no likelihood. A likelihood under one of them says nothing about another's."""
    variance: Literal["learned", "one"] = "learned"
    """Of q(z|x). one: noise of a fixed width, whose KL divergence mu^2 / 2 is a spring of strength beta that holds
    each mean to the origin; with beta 0 nothing does."""
    beta: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the KL divergence; 1: the bound itself."""
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of training over which beta rises linearly from 0."""

    @property
    def no_likelihood(self) -> str:
        grey = self.likelihood == "bernoulli" and self.binarisation == "none"
        return "is trained on grey pixels, of which bernoulli is no likelihood" if grey else ""

    def mistakes(self) -> Iterator[Mistake]:
        yield from super().mistakes()
        if self.binarisation != "none" and self.likelihood != "bernoulli":
            yield "binarisation", f"{self.binarisation}: likelihood {self.likelihood} is of grey pixels; expected none"


class VAE(Variational):
    """Variational autoencoder (arXiv 1312.6114): - ELBO with one draw of the latent for each image."""

    kind: Literal["vae"] = "vae"
    free_bits: Annotated[float, Field(ge=0)] = 0.0
    """Nats per unit below which its KL (mean over the batch) is not pressed further."""


class IWAE(Variational):
    """Importance-weighted autoencoder (arXiv 1509.00519): a tighter bound, by several draws for each image."""

    numbers = Variational.numbers | {"vae/iwae": "bound"}
    kind: Literal["iwae"] = "iwae"
    samples: Count = 50
    """Draws of the latent for each image; 1: the ELBO."""
    single: Fraction = 0.0
    """Share of training, at its start, with one draw, for a fraction of the cost."""
    gradient: Literal["reparameterised", "doubly_reparameterised"] = "reparameterised"
    """Of the encoder. doubly_reparameterised (DReG, arXiv 1810.04152): the same in the mean, with less noise."""

    def mistakes(self) -> Iterator[Mistake]:
        yield from super().mistakes()
        if self.gradient == "doubly_reparameterised" and (self.beta != 1 or self.warmup):
            yield "gradient", "doubly_reparameterised is of the bound itself; expected beta 1 and no warmup"


class Predictor(Objective):
    """What predicts sparse codes by layers z <- soft_threshold(We y + S z, theta) (Gregor & LeCun 2010)."""

    inputs: ClassVar[Inputs] = Inputs(views=0, signals=True)
    layers: Count = 3
    """Layers, each of which stands for an iteration of ISTA."""
    tied: bool = False
    """All layers share S and theta, as in the paper."""


class LISTA(Predictor):
    """LISTA (Gregor & LeCun 2010): layers that are trained to predict the codes of a dictionary."""

    kind: Literal["lista"] = "lista"
    form: Literal["lista", "coupled", "analytic", "steps"] = "lista"
    """Of a layer. lista: the paper's, two matrices and as many thresholds as atoms; coupled: one matrix (LISTA-CP,
    Chen et al. 2018); analytic: a step and a threshold, with a matrix that is computed (ALISTA, Liu et al. 2019);
    steps: a step alone (Ablin et al. 2019)."""
    loss: Literal["code", "energy"] = "energy"
    """code: squared distance to the exact code; energy: the lasso's own objective."""
    supervision: Literal["last", "all"] = "last"
    """Which layers the loss is of: of many, the first learn little from the last one's."""

    def mistakes(self) -> Iterator[Mistake]:
        yield from super().mistakes()
        if self.tied and self.form != "lista":
            yield "tied", f"is of form: lista; layers of form {self.form} share all that they can"


class PSD(Predictor):
    """Predictive sparse decomposition (Kavukcuoglu, Ranzato & LeCun 2008): the dictionary is trained on with the
    layers, so that its codes can be predicted."""

    kind: Literal["psd"] = "psd"
    prediction: Positive = 0.3
    """Times 1/2 ||z - Enc(y)||^2 in the energy that a code minimises."""
    steps: Count = 20
    """Of accelerated proximal gradient, from the layers' code to the best one."""
