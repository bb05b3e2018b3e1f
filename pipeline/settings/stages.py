"""The kinds of stage, and what each can be told."""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from .base import (
    Count,
    EncoderRef,
    FilePath,
    Fraction,
    Housekeeping,
    Mistake,
    ModelRef,
    Positive,
    Settings,
    ShardsRef,
    SourceText,
    over,
)
from .data import Characters, EachView, MoCoV2, Splits
from .densities import CD, NCE, PCD, Likelihood
from .kinds import AnyObjective, training_defaults
from .nets import CNN, Energy, EnergyNet, Net, ViT
from .objectives import MoCo, MomentumEncoder, Variational
from .sparse import Coding
from .stage import Stage
from .training import Training


class Pack(Stage):
    """Images -> WebDataset shards with an index and a manifest."""

    version = 3
    makes = ("shards",)
    numbers = {"train_images": "train images", "test_images": "test images"}
    kind: Literal["pack"] = "pack"
    source: SourceText = "digits"
    """digits · folder:PATH (class folders or flat, with or without train/ and test/) · torchvision:NAME · wds:TARS
    · shards:PLACE (packed or indexed shards in a folder or at a URL, used where they lie)"""
    root: FilePath | None = None
    """Where torchvision keeps, or downloads, its data."""
    splits: Literal["auto", "none"] | Splits = "auto"
    """Of a folder. auto: train/ beside val/ or test/ where nothing else holds images; none: every folder is a class;
    or which folders are splits: {train: FOLDER, test: FOLDER}."""
    classes: Literal["auto", "folders", "none"] = "auto"
    """Of a folder. folders: the first folder on an image's path is its class; none: no image has one; auto: as
    folders, where this is the only way to read it."""
    test: Fraction = 0.2
    """Share of the images held out where the source gives no test split: each image by a hash of its name and the
    seed, so that others which come or go do not move it; at least one of each class is trained on."""
    short_side: Annotated[int, Field(ge=8)] | None = None
    """Images larger than this many pixels are shrunk to it; null: the files' own bytes are packed."""
    shard_images: Count = 4096
    """Images a shard."""
    exif_orientation: bool = True
    """Images are turned as their EXIF orientation says, in every format alike, each time one is decoded; the files'
    own bytes are packed. false: as their pixels lie, as torchvision's ImageFolder reads them."""
    max_bad: Annotated[int, Field(ge=0), Housekeeping()] = 100
    """Unreadable images listed before packing gives up; where it does not, the others are packed whatever this is."""

    def mistakes(self) -> Iterator[Mistake]:
        yield from super().mistakes()
        for name in ("splits", "classes"):
            if getattr(self, name) != "auto" and not self.source.startswith("folder:"):
                yield name, "is for a source folder:PATH; leave it out"


class OnlineEvaluation(Settings):
    """What the encoder is evaluated on from time to time while it trains; it changes nothing of the training."""

    images: Count = 8192
    """Of the training split, at most: a fixed draw, of which a forward pass costs a hundredth of the training between
    two checkpoints."""
    neighbours: Count = 20
    """Of the kNN vote exp(s / T), as in DINO (arXiv 2104.14294)."""
    temperature: Positive = 0.07
    """Of that vote (arXiv 1805.01978)."""


class Pretrain(Training, Stage):
    """Trains a net by an objective. What the objective usually takes (`training_defaults` of its settings: an
    autoencoder's Adam, say) stands where a config says nothing else."""

    version = 4
    makes = ("model", "encoder")
    shared = True
    kind: Literal["pretrain"] = "pretrain"
    data: ShardsRef
    """The stage that packs the images."""
    net: Net = CNN()
    """What is trained: the trunk whose features are probed and exported."""
    objective: AnyObjective = MoCo()
    """How it is trained: what goes down, and what goes up or is limited."""
    views: EachView = (MoCoV2(),)
    """One mapping for both views, or a list of two, of some objectives of any number: a distribution for each."""
    restores: Annotated[int, Field(ge=0, le=10)] = 0
    """Times that a training which diverges (a loss or gradient that is not finite or, with collapse: stop, a collapse)
    goes back to its last good checkpoint and on at half the learning rate, before it ends with code 70."""
    online: Annotated[OnlineEvaluation, Housekeeping()] = OnlineEvaluation()
    """A kNN accuracy and the rank of the features, at each checkpoint."""

    @model_validator(mode="before")
    @classmethod
    def _as_the_objective_is_trained(cls, body: Any, info: ValidationInfo) -> Any:
        if not isinstance(body, dict):
            return body
        defaults = training_defaults(body.get("objective"), info)
        return body | {name: over(usual, body.get(name, usual)) for name, usual in defaults.items()}

    def mistakes(self) -> Iterator[Mistake]:
        yield from super().mistakes()
        if isinstance(self.net, EnergyNet) != self.objective.energy:
            makes = ("a trunk's features", "the energy of an image")[isinstance(self.net, EnergyNet)]
            yield "net.kind", f"a {self.net.kind} gives {makes}, which objective {self.objective.kind} does not train"
        elif isinstance(self.net, Energy) and isinstance(self.objective, CD | PCD):
            yield "net.kind", f"objective {self.objective.kind} needs Gibbs sweeps; expected an rbm or a boltzmann"
        elif not self.net.any_side and self.objective.inputs.jigsaw is not None:
            kind = self.net.kind
            yield "net.kind", f"a {kind} takes images of one size, not patches; use pretext: rotation, or a resnet"
        else:
            yield from self.objective.misfits(self.net)
        if self.weights == "sharded" and not self.objective.shards:
            yield "weights", f"objective {self.objective.kind} is not trained on shards; leave weights out"
        if self.objective.inputs.views == 0 and "views" in self.model_fields_set:
            yield "views", f"objective {self.objective.kind} is given the image itself; leave views out"
        elif len(self.views) > 2 and not self.objective.inputs.more_views:
            yield "views", f"found a list of {len(self.views)}; objective {self.objective.kind} takes two views"
        elif getattr(next(iter(self.views)), "small", None):
            if not self.objective.inputs.small_crops:
                yield "views.small", f"objective {self.objective.kind} takes no small crops; leave it out"
            if not self.net.any_side:
                yield "views.small", f"a {self.net.kind} takes images of one size, not small crops; leave it out"
        if self.view_size is not None:
            yield from self.misfits(self.view_size)

    def mistakes_among(self, stages: Mapping[str, Stage]) -> Iterator[Mistake]:
        if isinstance(self.objective, NCE) and isinstance(noise := stages.get(self.objective.model or ""), Pretrain):
            yield from self.objective.misfits_of_noise(noise.objective)

    def misfits(self, side: int) -> Iterator[Mistake]:
        """What does not go with views of ``side`` pixels."""
        if isinstance(self.net, ViT) and side % self.net.patch:
            yield "net.patch", f"{self.net.patch} does not divide views of {side} pixels; change it or views.size"
        if (jigsaw := self.objective.inputs.jigsaw) is not None:
            cell, patch = jigsaw.geometry(side)
            if patch > cell:
                yield "objective.jigsaw.patch", f"{patch} is more than a cell's {cell} pixels in views of {side}"

    def batches(self) -> dict[str, tuple[int, int]]:
        particles = {name: getattr(self.objective, name, None) for name in ("particles", "moved")}
        return super().batches() | {
            f"objective.{name}": (count, self.accumulate) for name, count in particles.items() if count
        }

    def unequal_shares(self, ranks: range) -> Iterator[Mistake]:
        """Also the blocks of the global batch that a batch norm cannot cut from each rank's images."""
        yield from super().unequal_shares(ranks)
        norm = self.net.norm
        if norm.kind not in ("split", "shuffle"):
            return
        strided = norm.kind == "shuffle" and isinstance(self.objective, MomentumEncoder)
        for size in ranks:
            images = self.batch // self.accumulate // size
            pieces = norm.splits if strided else norm.splits // math.gcd(norm.splits, size)
            if images % pieces:
                yield "net.norm.splits", (
                    f"{norm.splits} blocks of the global batch need a multiple of {pieces} images of a micro-batch on "
                    f"each of {size} workers; found {images}"
                )

    def outcome(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        return {word: metrics[name] for name, word in self.objective.numbers.items() if name in metrics}

    @property
    def view_size(self) -> int | None:
        """Side of a view in pixels; none: that of the packed images."""
        return self.views[0].size if self.objective.inputs.views else None


class Generate(Stage):
    """What a trained model draws of test images: reconstructions, samples, paths between images, its latent plane;
    what its energies tell from them; how likely an RBM or a variational autoencoder finds them."""

    version = 7
    makes = ("pictures",)
    numbers = {
        "energy": "energy",
        "log_likelihood": "log-likelihood",
        "frechet": "Frechet distance",
        "frechet_floor": "its floor",
    }
    kind: Literal["generate"] = "generate"
    data: ShardsRef
    """The stage that packs the images."""
    model: ModelRef
    """The pretraining whose model draws."""
    images: Annotated[int, Field(ge=32)] = 1000
    """Test images that stand in a latent plane, and whose energies are set against those of what is none of them; the
    first 32 are reconstructed."""
    others: tuple[ShardsRef, ...] = ()
    """Other packed sets, whose test images stand among what should have more energy: cut to the size of these."""
    likelihood: Likelihood = Likelihood()
    """Of an RBM or a variational autoencoder."""
    beside: tuple[ModelRef, ...] = ()
    """Other variational autoencoders of two latent units, whose balls stand on one sheet with this one's: those whose
    noise nothing limits, those that springs hold (variance one), and those with the whole KL divergence."""
    samples: Annotated[int, Field(ge=0)] = 0
    """Samples whose Frechet distance from as many test images is measured, beside that of training images, of
    what draws grey images; ten for each of the features at least. 0: none."""
    features: EncoderRef | None = None
    """The encoder whose features that distance is of; null: the images' own means over a grid of 7 x 7 cells."""

    def mistakes_among(self, stages: Mapping[str, Stage]) -> Iterator[Mistake]:
        model = stages.get(self.model)
        if isinstance(model, Pretrain) and not model.objective.draws:
            yield "model", f'"{self.model}" is trained by {model.objective.kind}, which draws nothing; leave this out'
        elif isinstance(model, Pretrain) and "likelihood" in self.model_fields_set and model.objective.no_likelihood:
            yield "likelihood", f'"{self.model}" {model.objective.no_likelihood}; leave likelihood out'
        for name in (self.model, *self.beside) if self.beside else ():
            objective = getattr(stages.get(name), "objective", None)
            if objective is not None and (not isinstance(objective, Variational) or objective.latent != 2):
                yield "beside", f'"{name}" is no variational autoencoder of two latent units; leave it out'


class Codes(Coding, Stage):
    """Sparse coding: a dictionary learned from streamed patches (or from an encoder's features), codes, LISTA."""

    version = 2
    makes = ("encoder",)
    numbers = {"objective": "objective", "nnz": "nonzero a code", "explained": "explained %"}
    shared = True
    kind: Literal["codes"] = "codes"
    data: ShardsRef
    """The stage that packs the images."""
    encoder: EncoderRef | None = None
    """Code this encoder's features instead of patches."""
    side: Count | None = None
    """Side in pixels to which images are cut; null: the packed images' (which must then be square and equal)."""
    signals: Count = 60000
    """Patches the dictionary learns from."""
    batch: Count = 512
    """Signals of one dictionary update."""
    whitening: Positive = 0.1
    """Added to the eigenvalues of the signals' covariance before ZCA divides by their roots (Coates & Ng 2011)."""
    whitening_signals: Count = 65536
    """Signals at most from which whitening is estimated."""
    lista_steps: Annotated[int, Field(ge=0)] = 400
    """Training steps of LISTA; 0: none."""
    lista_batch: Count = 256
    """Signals of one step of LISTA's training."""
    lista_lr: Positive = 1e-2
    """Of Adam. At 400 steps on digits the best of 1e-3 to 3e-2 for 3 layers."""
    lista_clip: Annotated[float, Field(ge=0)] = 0.3
    """Largest norm of LISTA's gradient; 0: not clipped. It keeps 7 layers from running away."""
    held_out: Count = 2048
    """Signals of the test split, at most, on which codes are measured and drawn."""
    curve_steps: Count = 50
    """Steps of ISTA and of FISTA whose energies are drawn."""
    log_steps: Annotated[Count, Housekeeping()] = 10
    """Dictionary updates between two points of its curve."""
    save_steps: Annotated[Count, Housekeeping()] = 200
    """Dictionary updates between two checkpoints."""

    def batches(self) -> dict[str, tuple[int, int]]:
        return {"batch": (self.batch, 1)} | ({"lista_batch": (self.lista_batch, 1)} if self.lista_steps else {})


TAKEN = ("raw_pixels", "random", "features", "predicted", "scores", "sheets", "projector")
"""Rows and folders that every probe has."""


class Probe(Stage):
    """Evaluates encoders by a linear probe on all labels and on a few, and by weighted kNN; raw pixels and an
    untrained network beside them."""

    version = 3
    makes = ("report",)
    kind: Literal["probe"] = "probe"
    data: ShardsRef
    """The stage that packs the images."""
    encoders: Annotated[tuple[EncoderRef, ...], Field(min_length=1)]
    """The stages whose encoders are evaluated, a row each."""
    per_class: Count = 10
    """Labels a class in the few-label probe."""
    draws: Annotated[int, Field(ge=2)] = 10
    """Label draws it is averaged over: the same for every row."""
    validation: Annotated[float, Field(gt=0, lt=0.9)] = 0.2
    """Share of the training split on which the penalty is chosen; where that is few images, with all labels on every
    such part in turn. Test is read once."""
    neighbours: Count = 20
    """Training images that vote on each test image, by kNN."""
    temperature: Annotated[float, Field(gt=0)] = 0.07
    """Of the kNN vote exp(s / T) (arXiv 1805.01978)."""
    train_examples: Count | None = None
    """Use only the first so many labelled training samples."""
    projection: bool = False
    """Also evaluate what the head makes of each encoder's features, as rows of their own, NAME_projection: what papers
    that take neighbours in the space of the loss compare with (MoCo's colab). Encoders without a head have none."""

    @field_validator("encoders")
    @classmethod
    def a_row_each(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        """A row is named by its stage, and a folder by its row."""
        for name in names:
            if name in TAKEN:
                raise ValueError(f"a probe has {name} of its own; expected a stage of another name")
            if names.count(name) > 1:
                raise ValueError(f"{name} is listed {names.count(name)} times; expected each encoder once")
            if any(name == f"random_{other}" for other in names):
                raise ValueError(f"{name} is the untrained row of another encoder; expected a stage of another name")
        return names

    def outcome(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        return {f"{name} %": 100 * row["linear_few"] for name, row in metrics.get("rows", {}).items()}

    @property
    def protocol(self) -> str:
        return f"linear, {self.per_class} labels a class"

    def mistakes(self) -> Iterator[Mistake]:
        yield from super().mistakes()
        for name in self.encoders if self.projection else ():
            if f"{name}_projection" in self.encoders:
                yield "encoders", f"{name}_projection is the row of {name}'s head; expected a stage of another name"


AnyStage = Annotated[Pack | Pretrain | Probe | Codes | Generate, Field(discriminator="kind")]

__all__ = ["AnyStage", "Characters", "Codes", "Generate", "Pack", "Pretrain", "Probe"]
