"""The one loop's settings: batch, optimiser, schedule, precision, saving."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from .base import Count, Fraction, Housekeeping, Mistake, Positive, Settings


class LearningRate(Settings):
    """The learning rate after warm-up, and how it grows with the batch."""

    lr: Positive
    """Learning rate after warm-up for a batch of reference_batch images; scaled with the global batch."""
    reference_batch: Annotated[int, Field(ge=0)] = 256
    """Images; 0: lr is taken as it is."""
    lr_scaling: Literal["linear", "sqrt"] = "linear"
    """How lr grows from reference_batch to the global batch: in proportion (arXiv 1706.02677), or with the root
    (SimCLR's other rule, 0.075 sqrt(batch), is lr 0.075, reference_batch 1)."""


class SGD(LearningRate):
    """Stochastic gradient descent with momentum, as MoCo and PIRL use it."""

    kind: Literal["sgd"] = "sgd"
    lr: Positive = 0.03
    momentum: Fraction = 0.9
    """Share of the last step that is added to the next."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Times the weights, added to the gradient (L2 penalty)."""
    decay_norms: bool = True
    """Whether biases and norms are decayed too (MoCo: yes; PIRL: no)."""
    nesterov: bool = False
    """Nesterov's momentum: the gradient is taken as if the momentum's step were made already."""


class LARS(LearningRate):
    """SGD whose step is, in every weight matrix, in proportion to the weights' norm (arXiv 1708.03888), as MoCo v3 and
    SimCLR use it: biases and norms neither decayed nor adapted."""

    kind: Literal["lars"] = "lars"
    lr: Positive = 0.3
    momentum: Fraction = 0.9
    """Share of the last step that is added to the next."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-6
    """Times the weights, added to the gradient."""
    trust_coefficient: Positive = 1e-3
    """Norm of a step over that of the weights, at lr 1."""
    bias_lr_scale: Positive = 1.0
    """Times the learning rate of biases and norms, whose steps are not adapted (Barlow Twins: 0.0048 / 0.2)."""


class Adam(LearningRate):
    """Adam (arXiv 1412.6980); with weight_decay, AdamW (arXiv 1711.05101)."""

    kind: Literal["adam"] = "adam"
    lr: Positive = 1e-3
    reference_batch: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Share of the weights taken off each step, times the learning rate: decoupled from the gradient (AdamW)."""
    decay_norms: bool = False
    """Whether biases and norms are decayed too."""


Optimiser = Annotated[SGD | LARS | Adam, Field(discriminator="kind")]


class Training(Settings):
    """What every trained stage shares."""

    epochs: Count = 200
    """Passes over the training split, each in an order of its own."""
    steps: Count | None = None
    """Optimiser steps; where given, it cuts (or lengthens) the run instead of epochs."""
    batch: Count = 256
    """Images of one optimiser step, over all ranks and micro-batches."""
    accumulate: Count = 1
    """Micro-batches a step."""
    optimiser: Optimiser = SGD()
    """Its kind, learning rate and weight decay."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """Epochs over which the learning rate rises linearly from 0."""
    schedule: Literal["cosine", "linear", "steps", "constant"] = "cosine"
    """cosine, linear: how the rate falls to min_lr_ratio; steps: a tenth at each of lr_drops."""
    hold: Fraction = 0.0
    """Share of training up to which the rate stays at its peak, before cosine or linear lets it fall."""
    lr_drops: tuple[float, ...] = (0.6, 0.8)
    """Shares of training at which schedule steps divides by ten (MoCo v1: epochs 120 and 160 of 200)."""
    min_lr_ratio: Fraction = 0.0
    """Learning rate at which cosine or linear ends, over its peak (PIRL: 1e-3)."""
    clip: Annotated[float, Field(ge=0)] = 0.0
    """Largest norm of the gradient; 0: not clipped."""
    ema: Fraction = 0.0
    """Decay of the exponential moving average of the weights that are exported; 0: the last weights."""
    average: Fraction = 0.0
    """Share of training, at its end, whose weights are averaged instead, each step's alike (Polyak 1992)."""
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    """bf16: autocast, logits and losses stay in fp32."""
    channels_last: bool = False
    """Convolutions on [B, H, W, C] in memory: on CPUs a third faster for residual networks, and on GPUs in bf16."""
    compile: Literal[False, True, "graphs"] = False
    """Networks by torch.compile, after a minute or two of compiling; graphs: also as CUDA graphs, for networks so
    small that starting their kernels takes longer than running them. On a CPU it needs a C++ compiler, and did not
    pay reliably for ResNet-18 at 32 pixels: measure first."""
    weights: Literal["replicated", "sharded"] = "replicated"
    """sharded: each rank holds its shard of weights, gradients and moments (FSDP), for networks too large for one
    device. Of one process nothing changes."""
    train_examples: Count | None = None
    """Use only the first so many training samples (a fixed random subset: packing shuffles)."""
    window: Count | None = None
    """Shards read from at a time, for shards that are far away; null: each batch is drawn from the whole set."""
    log_steps: Annotated[Count, Housekeeping()] = 10
    """Between rows of metrics.jsonl; the weights are the same."""
    save_epochs: Annotated[Count, Housekeeping()] = 10
    """Between checkpoints, from any of which a training goes on to the same end."""
    save_steps: Annotated[Count | None, Housekeeping()] = None
    """Between checkpoints, instead of epochs."""
    check_steps: Annotated[int, Field(ge=0), Housekeeping()] = 200
    """Between comparisons of the ranks' weights and memories, bit for bit; 0: none."""
    collapse: Annotated[Literal["say", "stop", "ignore"], Housekeeping()] = "say"
    """What to do where embeddings fall together or energies stay flat: write a line, or end with code 70. It decides
    whether a training ends early, not what a finished one has learned."""
    keep: Annotated[Count, Housekeeping()] = 2
    """Checkpoints kept."""
    snapshots: Annotated[int, Field(ge=0), Housekeeping()] = 4
    """Models kept along the way, evenly spaced, for the points of the probe's curve before its last. A training that
    is done has those it was run with."""
    max_bad_share: Annotated[Fraction, Housekeeping()] = 0.001
    """Share of unreadable samples past which training stops (ten are always forgiven). It decides whether a training
    ends early, not what takes an unreadable sample's place."""

    def mistakes(self) -> Iterator[Mistake]:
        yield from super().mistakes()
        if self.batch % self.accumulate:
            yield "batch", f"{self.batch} is not a multiple of accumulate {self.accumulate}"
        if self.weights == "sharded" and (self.compile or self.channels_last):
            yield "weights", "sharded goes with neither compile nor channels_last: leave one of them out"
        if self.ema and self.average:
            yield "average", f"weights are averaged by ema {self.ema:g} already: leave one of them out"
        if self.train_examples is not None and self.train_examples < self.batch:
            yield "train_examples", (
                f"{self.train_examples} is less than one batch of {self.batch}; lower batch or raise it"
            )

    def batches(self) -> dict[str, tuple[int, int]]:
        """Batches that are shared over ranks, by setting: samples, and the micro-batches that they are cut into."""
        return {"batch": (self.batch, self.accumulate)}

    def peak_lr(self) -> float:
        """The learning rate after warm-up: lr x batch / reference_batch, or with the root of that ratio, or lr itself
        where reference_batch is 0."""
        optimiser = self.optimiser
        ratio = self.batch / optimiser.reference_batch if optimiser.reference_batch else 1.0
        return optimiser.lr * (ratio if optimiser.lr_scaling == "linear" else ratio**0.5)

    def samples(self, packed: int) -> int:
        """Samples trained on, of those packed."""
        return min(packed, self.train_examples or packed)

    def steps_per_epoch(self, packed: int) -> int:
        """Whole batches an epoch; the rest is left out, another rest each epoch."""
        return self.samples(packed) // self.batch

    def total_steps(self, packed: int) -> int:
        """Optimiser steps of the whole training."""
        return self.steps or self.epochs * self.steps_per_epoch(packed)
