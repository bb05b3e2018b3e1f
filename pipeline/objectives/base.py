"""What an objective is: a pure forward that gives energies and a loss, and a commit that is the only change of state.

Energies: p is proportional to exp(-E), lower is more compatible. For InfoNCE low = -s+/T and high = -s-/T, so that
loss = mean(low + logsumexp(-[low, high])).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import keyed
from pipeline.image import Image
from pipeline.samplers import langevin
from pipeline.settings.base import Settings
from pipeline.settings.nets import Net
from pipeline.sheets import Picture
from pipeline.tensors import send
from pipeline.world import World

PATIENCE_STEPS = 50
"""Steps that a sign of collapse has to stay before it is one."""


class Lasso(NamedTuple):
    """The problem whose solutions are sparse codes: 1/2 ||y - D z||^2 + penalty ||z||_1."""

    dictionary: Tensor
    """Unit atoms as columns, [p, k]."""
    penalty: float


@dataclass(frozen=True)
class Setup:
    """What an objective is built for, the same for all of them. ``samples``: how many ids there are, for memories with
    a row each; ``net``: the network that is trained; ``lasso``: for an objective that predicts sparse codes;
    ``noise``: a trained autoencoder, for one that tells images from what it draws;
    ``pixel_means``: of the training images in [0, 1], [C, H, W], for one that trains energies and starts from them."""

    image: Image
    samples: int
    net: Net
    world: World
    seed: int
    lasso: Lasso | None = None
    noise: Any = None
    pixel_means: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """This rank's share of a micro-batch. ``views``: float tensors [B, ...] as the settings' ``inputs`` say;
    ``ids``: the samples' dense ids, int64 [B]; ``progress``: share of training done, 0 to 1; ``dtype``: of the views,
    and of what is drawn; ``piece``: which micro-batch of the step's how many, for what a step does once."""

    views: tuple[Tensor, ...]
    ids: Tensor
    step: int = 0
    epoch: int = 0
    seed: int = 0
    progress: float = 1.0
    dtype: torch.dtype = torch.float32
    piece: tuple[int, int] = (0, 1)

    @property
    def device(self) -> torch.device:
        return self.views[0].device if self.views else self.ids.device  # ids of a dry run are real, its views not

    def keys(self, op: str) -> np.ndarray:
        """The keys of (seed, epoch, sample, op): uint64 [B]."""
        return keyed.key(self.seed, self.epoch, self.ids.cpu().numpy(), op)

    def uniform(self, op: str, *shape: int) -> Tensor:
        """Numbers in [0, 1) that depend on (seed, epoch, sample, op) alone -> [B, *shape]."""
        numbers = keyed.uniform_of(self.keys(op), math.prod(shape))
        return send(numbers, self.device).to(self.dtype).reshape(len(self.ids), *shape)

    def normal(self, op: str, *shape: int) -> Tensor:
        """Standard normal numbers that depend on (seed, epoch, sample, op) alone -> [B, *shape]; on a GPU they are
        computed there."""
        like = torch.empty(len(self.ids), *shape, dtype=self.dtype, device=self.device)
        return langevin.normal(self.keys(op), like)


@dataclass(frozen=True)
class Step:
    """``loss``: 0-d, this rank's mean. ``low`` [R]: energies of data or positives, R = B or, where each sample gives
    more, a multiple, a sample's next to each other; ``high`` [R, K]: of what is pushed up, infinite where it is no
    negative of the row, [1, K] where it is of no row, [R, 0] where volume is limited instead. ``scalars``: detached
    0-d tensors by tag. ``pending``: detached rows of the whole micro-batch over all ranks, in order, for
    `Objective.commit`; of particles this rank's. ``per_sample``: detached tensors [B, ...] by name, which
    `Objective.diagnostics` reads."""

    loss: Tensor
    low: Tensor
    high: Tensor
    scalars: dict[str, Tensor] = field(default_factory=dict)
    pending: dict[str, Tensor] = field(default_factory=dict)
    per_sample: dict[str, Tensor] = field(default_factory=dict)


class Sign(NamedTuple):
    """Something by which a collapse is seen, in words, and the steps that it has to stay until it counts."""

    text: str
    patience_steps: int = PATIENCE_STEPS


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are trained alike: with ``lr_scale`` times the learning rate or, with ``constant_lr``, its peak,
    with a ``weight_decay`` of their own where it is given, and left as they are in the first ``frozen_steps``."""

    params: list[nn.Parameter]
    lr_scale: float = 1.0
    constant_lr: bool = False
    weight_decay: float | None = None
    frozen_steps: int = 0


class Objective(nn.Module):
    """``embed`` works sample by sample; ``score`` may look at the whole batch and at memory. Neither changes state,
    but for batch norm's running statistics. Every constructor takes (settings, setup)."""

    Settings: ClassVar[type[Settings]]
    """Its settings model, whose ``kind`` is the name in a config."""
    coupled: bool = False
    """Whether the loss of one sample depends on others of its batch (then accumulation needs two passes)."""
    commit_changes: tuple[str, ...] = ()
    """Starts of the names of the state that `commit` may change."""
    training_state: ClassVar[tuple[str, ...]] = ()
    """Starts of the names of the state that only training needs: a finished model is written without it."""
    monitor_warmup_epochs: ClassVar[int] = 0
    """Epochs before its energies tell anything."""
    remedy: ClassVar[str] = "lower the learning rate"
    """What to try against a collapse."""
    encoder_fields: ClassVar[tuple[str, ...]] = ()
    """Settings that its encoder is made of, beside the net; none: the encoder is the net itself."""
    normalised: ClassVar[bool] = True
    """Whether its encoder takes pixels less their mean over their deviation, or as they are, in [0, 1]."""

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """Rows per sample, [B, ...] each, from the batch's views."""
        raise TypeError(f"{type(self).__name__} does not say how it embeds")

    def score(self, embedded: tuple[Tensor, ...], batch: Batch) -> Step:
        raise TypeError(f"{type(self).__name__} does not say how it scores")

    def forward(self, batch: Batch, part: str = "all") -> Any:
        """The step; with part = "embed" only its rows (the loop's two passes go through DDP by this door)."""
        embedded = self.embed(batch)
        return embedded if part == "embed" else self.score(embedded, batch)

    @torch.no_grad()
    def commit(self, pending: dict[str, Tensor], batch_step: int, progress: float = 0.0) -> None:
        """Once after each applied optimiser step, with the pending rows of the whole global batch; ``progress``: share
        of training that is then done."""

    def parameter_groups(self) -> list[ParameterGroup]:
        """How its parameters are trained: by default all alike. Each parameter that trains is in one group."""
        return [ParameterGroup([p for p in self.parameters() if p.requires_grad])]

    def diagnostics(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        """Scalars by tag, 0-d, of a step that is logged, after its commit: what is too dear for every step, or is a
        property of the global batch or of memory. Averaged over ranks, which all call it together."""
        return {}

    def caveats(self) -> Iterator[str]:
        """Lines to print before the first step, about settings that have another effect than might be expected."""
        yield from ()

    def collapse_signs(self, scalars: dict[str, float]) -> dict[str, Sign]:
        """The signs by name by which the scalars logged of a step say that nothing is learned any more. An objective
        that does not say which signs it has is not watched, which its training then says."""
        return {}

    def negative_ids(self, batch: Batch) -> Tensor | None:
        """Ids of the samples that the columns of ``high`` are of, int64 [K], -1 where of none; None: they are of no
        samples."""
        return None

    def energy_count(self, share: int, batch: int) -> int:
        """Entries of ``high`` for a share of a global batch."""
        return 0

    def replicated(self) -> dict[str, Tensor]:
        """Weights and memory that every rank holds alike."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def figures(self, images: Tensor, classes: list[str], seed: int) -> dict[str, Picture]:
        """What a trained one draws of test images in [0, 1], [n, C, H, W], and of the names of their classes [n], ""
        where there is none: pictures by tag."""
        return {}

    def measures(self, images: Tensor, seed: int) -> dict[str, float]:
        """Numbers of a trained one on test images in [0, 1], [n, C, H, W], by tag."""
        return {}

    @property
    def projection(self) -> nn.Module | None:
        """The head in whose space its energies are, from the encoder's features to [B, dim]; None: there is none."""
        return None

    @property
    def encoder(self) -> nn.Module:
        """What is probed and exported: images [B, C, H, W] -> features [B, features]."""
        raise TypeError(f"{type(self).__name__} has no encoder")
