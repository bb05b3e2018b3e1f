"""The nets: trunks, which turn an image into the features that are probed and exported, and energies of images."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, WrapValidator, model_validator

from .base import Count, Edge, Fraction, Housekeeping, Mistake, Settings, at_home
from .imports import AS_IT_IS, of_file


class Norm(Settings):
    """Which images a batch norm takes its statistics from."""

    kind: Literal["global", "shuffle", "split", "local", "none"] = "global"
    """global: the whole batch over all ranks; shuffle: blocks of the global batch by position, a key's companions
    others than its query's (MoCo's shuffled batch norm, on any number of devices); split: the same blocks for both,
    by which a query may know its key; local: each rank's own share (depends on the number of ranks); none: group
    norm instead."""
    splits: Count = 1
    """Blocks of the global batch, for shuffle and split: 8 is MoCo on eight devices."""
    groups: Annotated[int, Field(ge=0)] = 8
    """Groups of the group norm, for none; 0: no norm of any kind, biases in its place (cnn alone). A norm's own output
    has the same size whatever its input's: an energy that has to grow with the distance from images has none."""

    @property
    def absent(self) -> bool:
        """Whether there is no norm of any kind."""
        return self.kind == "none" and self.groups == 0


Activation = Literal["relu", "silu"]

INITS = ("file:", "artifact:", "torchvision:", "timm:")


def known_init(text: str) -> str:
    """Raises ValueError where a text names no weights that a net may start from."""
    scheme, colon, where = text.partition(":")
    if scheme + colon not in INITS or not where:
        expected = "file:PATH.safetensors, artifact:STAGE, torchvision:NAME or timm:NAME"
        raise ValueError(f'found "{text}"; expected {expected}')
    if scheme == "file" and Path(where).suffix != ".safetensors":
        raise ValueError(f'found "{text}"; expected a .safetensors: a pickle may run code, and is not read')
    return f"{scheme}:{at_home(where)}" if scheme in ("file", "artifact") else text


class Trunk(Settings):
    """A network from images to the features that are probed and exported."""

    any_side: ClassVar[bool] = False
    """Whether it takes images of any side, patches and small crops too; else of one side alone."""
    init: Annotated[str, AfterValidator(known_init), Edge("model", "artifact:")] | None = None
    """Where its first weights come from; null: random ones. file:PATH.safetensors (by torchvision's names, by timm's,
    or by ours) · artifact:STAGE or artifact:FOLDER (a pretraining of this config, or the folder of one) ·
    torchvision:NAME · timm:NAME. Images are then normalised as those were that the weights were trained on."""


class DeepTrunk(Trunk):
    """A trunk of many blocks."""

    frozen: Annotated[int, Field(ge=0)] = 0
    """First blocks that stay as ``init`` has them, with all that stands before them; 0: everything is trained. Batch
    norms there normalise by their running statistics."""
    checkpointing: Annotated[bool, Housekeeping()] = False
    """Of each block its input alone is kept for the backward pass, which computes the rest again (arXiv 1604.06174):
    less memory for a third more time, and the same numbers."""

    def mistakes(self) -> Iterator[Mistake]:
        yield from super().mistakes()
        if self.frozen and self.init is None:
            yield "frozen", f"the first {self.frozen} blocks would stay random; expected an init, or 0"


class CNN(Trunk):
    """A small convolutional network for small images: blocks of 3x3 convolution, norm and ReLU (or ``activation``),
    pooled in between."""

    any_side: ClassVar[bool] = True
    kind: Literal["cnn"] = "cnn"
    width: Count = 32
    """Channels of the first block; each later block has twice as many as the one before."""
    activation: Activation = "relu"
    """silu: smooth, for energies of which second derivatives are taken; a relu's are zero."""
    depth: Annotated[int, Field(ge=1, le=5)] = 3
    """Blocks; the side halves from one to the next."""
    halve: Literal["pool", "stride"] = "pool"
    """pool: by the largest of four after every block but the last; stride: by every block's convolution, which costs a
    third."""
    grid: Annotated[int, Field(ge=0, le=8)] = 0
    """0: features are the last block's, averaged over the image. Else averaged over so many cells on a side, with one
    hidden layer over all of them, twice as wide as the block: features that see the whole of an image whose side is
    many times what one position of the last block sees."""
    norm: Norm = Norm()
    """Of the blocks and the heads."""


class MLP(Trunk):
    """Fully connected layers with a ReLU (or ``activation``) after each, on all pixels of an image at once, for small
    images."""

    kind: Literal["mlp"] = "mlp"
    width: Count = 256
    """Units of each layer."""
    activation: Activation = "relu"
    """silu: smooth, for energies of which second derivatives are taken; a relu's are zero."""
    layers: Annotated[int, Field(ge=1, le=8)] = 2
    """Layers, all of the same width."""
    norm: Norm = Norm()
    """Of the heads; the layers have none."""


class ResNet(DeepTrunk):
    """torchvision's residual networks (arXiv 1512.03385) without their classifier."""

    any_side: ClassVar[bool] = True
    kind: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet18"
    stem: Literal["auto", "imagenet", "small"] = "auto"
    """imagenet: 7x7 stride 2 and max-pool; small: 3x3 stride 1 without pool; auto: small below 64 pixels."""
    zero_init: bool = False
    """The last norm of each residual branch starts at zero, so that the network starts as its shortcuts alone (arXiv
    1706.02677, sec. 5.1): rounding then grows slowly in the first steps."""
    norm: Norm = Norm()
    """Of the blocks and the heads."""

    def mistakes(self) -> Iterator[Mistake]:
        yield from super().mistakes()
        if self.norm.absent:
            yield "norm.groups", "a resnet without any norm is not trained here; expected 1 or more"


class ViT(DeepTrunk):
    """Vision transformer (arXiv 2010.11929) as MoCo v3 trains it, with a fixed sine-cosine position embedding and a
    frozen patch projection.

    Defaults: MoCo v3's ViT-S, twelve blocks of twelve heads."""

    kind: Literal["vit"] = "vit"
    patch: Count = 16
    """Side of a patch in pixels."""
    width: Count = 384
    """Dimensions of a token, and of the features."""
    depth: Count = 12
    """Blocks, each of attention and a fully connected layer four times as wide."""
    heads: Count = 12
    """Heads of attention in a block."""
    frozen_patches: bool = True
    """The random patch projection is not trained (arXiv 2104.02057, sec. 4.2)."""
    norm: Norm = Norm()
    """Of the heads; the trunk has layer norms."""

    @model_validator(mode="after")
    def _whole_heads(self):
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads} and of 4")
        return self


class LibraryNet(DeepTrunk):
    """A network of torchvision or of timm by its name, without its classifier; its batch norms are ours."""

    kind: Literal["torchvision", "timm"] = "timm"
    name: Annotated[str, Field(min_length=1)]
    """As `torchvision.models.get_model` and `timm.create_model` take it, such as convnext_tiny."""
    norm: Norm = Norm()
    """Of the network's batch norms, where it has any, and of the heads."""


class EnergyNet(Settings):
    """A net that gives each image an energy, p(x) proportional to exp(-E(x)). The densities train it."""

    any_side: ClassVar[bool] = False
    norm: ClassVar[Norm] = Norm(kind="none")
    """An energy is of its image alone, whatever is beside it in a batch."""


class Boltzmann(EnergyNet):
    """Fully visible Boltzmann machine (Ackley, Hinton & Sejnowski 1985): binary pixels with a weight for every pair;
    its features are the log-odds of each pixel given the others."""

    kind: Literal["boltzmann"] = "boltzmann"


class RBM(EnergyNet):
    """Restricted Boltzmann machine (Smolensky 1986) of binary pixels and binary hidden units; its features are the
    probabilities of the hidden units."""

    kind: Literal["rbm"] = "rbm"
    hidden: Count = 500
    """Hidden units: with 2^22 states or fewer on either side, the partition function is exact."""
    centred: bool = True
    """Pixels and hidden units less their means (Melchior, Fischer & Wiskott 2016): the same family of densities, whose
    gradient does not depend on which of 0 and 1 is ink."""
    offset_rate: Fraction = 0.01
    """Of the moving mean of the hidden units, a step."""


class Energy(EnergyNet):
    """A trunk whose features a linear layer makes one number, the energy."""

    kind: Literal["energy"] = "energy"
    trunk: Annotated[CNN | MLP | ResNet | ViT, Field(discriminator="kind")] = CNN(
        halve="stride", activation="silu", norm=Norm(kind="none")
    )
    """A linear layer on its features is the energy. A cnn or a resnet has norm.kind none."""
    base: Literal["none", "cone"] = "none"
    """cone: sqrt(pixels) times the distance to the mean image is added, which is what score matching over a ladder of
    noise comes to far from all images: the trunk has only the difference to learn."""
    spectral_norm: bool = False
    """Every weight matrix of the trunk is divided by its largest singular value (Miyato et al. 2018, arXiv
    1802.05957), as Du & Mordatch (2019, arXiv 1903.08689) do: features have bounded slopes."""

    def mistakes(self) -> Iterator[Mistake]:
        yield from super().mistakes()
        if isinstance(self.trunk, CNN | ResNet) and self.trunk.norm.kind != "none":
            yield "trunk.norm.kind", f"{self.trunk.norm.kind}: an energy is of its image alone; expected none"


Portable = ResNet | ViT | LibraryNet
"""What others load by name."""
class Network(Trunk):
    """What a network of a user's own file can be told, beside what its own settings say."""

    norm: Norm = Norm()
    """Of the layers that it makes by the ``norm`` which its constructor is given."""


Net = Annotated[
    CNN | MLP | ResNet | ViT | LibraryNet | Boltzmann | RBM | Energy,
    Field(discriminator="kind"),
    AS_IT_IS,
    WrapValidator(of_file("net")),
]
"""Ours by name, or "mine:Plain", a class of a file that the config imports."""


def trunk_of(net: Any) -> Trunk | None:
    """The trunk that a net is, or that its energy is made of; None where it has none."""
    trunk = net.trunk if isinstance(net, Energy) else net
    return trunk if isinstance(trunk, Trunk) else None


def stage_named(init: str | None) -> str | None:
    """The stage of the same config that a net's ``init`` names."""
    return Edge("model", "artifact:").stage(init or "")


def structure(net: Any) -> Any:
    """The net without what is of its training alone: where its weights come from, and how its blocks are trained."""
    trunk = trunk_of(net)
    usual = {"init": None, "frozen": 0, "checkpointing": False}
    return changed(net, **{name: usual[name] for name in usual if name in type(trunk).model_fields}) if trunk else net


def changed(net: Any, **changes: Any) -> Any:
    """The net with other settings of its trunk."""
    if isinstance(net, Energy):
        return net.model_copy(update={"trunk": changed(net.trunk, **changes)})
    return net.model_copy(update=changes) if isinstance(net, Trunk) else net
