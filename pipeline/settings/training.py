"""The one loop's settings: batch, optimiser, schedule, precision, saving."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .base import Count, Fraction, Positive, Settings


class SGD(Settings):
    kind: Literal["sgd"] = "sgd"
    lr: Positive = 0.03
    """For a batch of lr_batch; scaled linearly with the global batch."""
    lr_batch: Annotated[int, Field(ge=0)] = 256
    """0: lr is taken as it is."""
    momentum: Fraction = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    decay_norms: bool = True
    """Whether biases and norms are decayed too (MoCo: yes; PIRL: no)."""
    nesterov: bool = False


class Adam(Settings):
    kind: Literal["adam"] = "adam"
    lr: Positive = 1e-3
    lr_batch: Annotated[int, Field(ge=0)] = 0
    """0: lr is taken as it is."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled (AdamW)."""
    decay_norms: bool = False


Optimiser = Annotated[SGD | Adam, Field(discriminator="kind")]


class Training(Settings):
    """What every trained stage shares."""

    epochs: Count = 200
    steps: Count | None = None
    """Optimiser steps; where given, it cuts (or lengthens) the run instead of epochs."""
    batch: Count = 256
    """Images of one optimiser step, over all ranks and micro-batches."""
    accumulate: Count = 1
    """Micro-batches a step."""
    optimiser: Optimiser = SGD()
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    clip: Annotated[float, Field(ge=0)] = 0.0
    """Largest norm of the gradient; 0: not clipped."""
    ema: Fraction = 0.0
    """Decay of the exponential moving average of the weights that are exported; 0: the last weights."""
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    """bf16: autocast, logits and losses stay in fp32."""
    train_examples: Count | None = None
    """Use only the first so many training samples (a fixed random subset: packing shuffles)."""
    window: Count | None = None
    """Shards read from at a time, for shards that are far away; none: each batch is drawn from the whole set."""
    log_steps: Count = 10
    save_epochs: Count = 10
    """Between checkpoints."""
    keep: Count = 2
    """Checkpoints kept."""
    snapshots: Annotated[int, Field(ge=0)] = 4
    """Encoders kept along the way, evenly spaced, for the probe's curve."""
    max_bad_share: Fraction = 0.001
    """Share of unreadable samples past which training stops (ten are always forgiven)."""

    @model_validator(mode="after")
    def _whole_micro_batches(self):
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} is not a multiple of accumulate {self.accumulate}")
        return self

    def peak_lr(self) -> float:
        """The learning rate after warm-up: lr x batch / lr_batch (arXiv 1706.02677), or lr where lr_batch is 0."""
        return self.optimiser.lr * (self.batch / self.optimiser.lr_batch if self.optimiser.lr_batch else 1.0)

    def samples(self, packed: int) -> int:
        """Samples trained on, of those packed."""
        return min(packed, self.train_examples or packed)

    def steps_per_epoch(self, packed: int) -> int:
        """Whole batches an epoch; the rest is left out, another rest each epoch."""
        return self.samples(packed) // self.batch

    def total_steps(self, packed: int) -> int:
        """Optimiser steps of the whole training."""
        return self.steps or self.epochs * self.steps_per_epoch(packed)
