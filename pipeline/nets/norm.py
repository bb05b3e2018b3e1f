"""Batch norm whose statistics come from blocks of the global batch, whatever number of ranks it lies on."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.errors import ConfigError
from pipeline.settings.nets import Norm
from pipeline.world import World


class BatchNorm(_BatchNorm):
    """Batch norm (arXiv 1502.03167) of [B, C, ...] whose statistics are those of blocks of the global batch.

    The global batch is all ranks' shares in rank order. It is divided by position into ``blocks`` equal parts, and
    each is normalised by its own mean and variance: one block is synchronised batch norm; as many blocks as ranks are
    each rank's own batch norm; any other number is MoCo's split batch norm, however many devices there are. A block is
    a run of positions or, if ``strided``, every position p with p mod blocks = b: a sample then has other companions,
    which is MoCo's shuffled batch norm without moving an image.

    Each rank cuts its share into the fewest pieces that lie in one block each. Mean and sum of squared deviations of
    all pieces are gathered and joined by Chan's formula, which loses no digits. Running statistics move towards the
    mean over blocks, of means and of unbiased variances, and stay the same on every rank.
    """

    def __init__(
        self,
        features: int,
        blocks: int = 1,
        world: World | None = None,
        *,
        strided: bool = False,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
    ):
        super().__init__(features, eps, momentum, affine)
        self.blocks, self.strided = blocks, strided
        self.frozen = False
        self.rank, self.size = (world.rank, world.size) if world else (0, 1)
        # A function, not the world: a deep copy of the module shares it, and so lives in the same world.
        self._gather: Callable[[Tensor], Tensor] = lambda x: world.gather(x) if world else x

    def train(self, mode: bool = True) -> "BatchNorm":
        """A ``frozen`` one normalises by its running statistics in training too."""
        return super().train(mode and not self.frozen)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"batch norm takes [B, C, ...], not {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or (self.blocks == 1 and self.size == 1):
            return super().forward(input)
        self._check_input_dim(input)
        if self.size == 1:
            return self._alone(input)
        pieces = self._cut(input)
        x = pieces.float() if pieces.dtype in (torch.bfloat16, torch.float16) else pieces
        over = [1, *range(3, x.ndim)]  # x: [pieces, images, C, ...]

        def spread(rows: Tensor) -> Tensor:
            """[pieces, C] or [1, C] to stand beside x."""
            return rows.view(len(rows), 1, self.num_features, *[1] * (x.ndim - 3))

        mean = x.mean(over)
        squares = (x - spread(mean)).square().sum(over)
        mean, variance, count = self._join(self._gather(torch.stack([mean, squares], 1)), x[0, :, :1].numel())
        self._track(mean.detach().mean(0), variance.detach().mean(0) * count / (count - 1))
        block = self._block(len(x), x.device)
        y = (x - spread(mean[block])) * spread((variance[block] + self.eps).rsqrt())
        if self.weight is not None:
            y = y * spread(self.weight[None])
        if self.bias is not None:
            y = y + spread(self.bias[None])
        return (y.transpose(0, 1) if self.strided else y).reshape(input.shape).to(input.dtype)

    def _alone(self, input: Tensor) -> Tensor:
        """On one rank: torch's own batch norm, once, with the blocks side by side as channels; its running statistics
        at momentum 1 are each block's mean and unbiased variance."""
        blocks = self._cut(input)
        self._check_values(blocks[0, :, :1].numel())
        n = len(blocks)
        assert self.running_mean is not None
        statistics = self.running_mean.new_zeros(2, n * self.num_features)
        weight, bias = (None if p is None else p.repeat(n) for p in (self.weight, self.bias))
        channels = blocks.transpose(0, 1).flatten(1, 2)
        y = batch_norm(channels, statistics[0], statistics[1], weight, bias, True, 1.0, self.eps)
        mean, variance = statistics.view(2, n, -1).mean(1)
        self._track(mean, variance)
        y = y.unflatten(1, (n, self.num_features))
        y = (y if self.strided else y.transpose(0, 1)).reshape(input.shape)
        return y.contiguous(memory_format=torch.channels_last) if channels_last(input) else y

    def _cut(self, x: Tensor) -> Tensor:
        """[n, C, ...] -> [pieces, n / pieces, C, ...], each piece inside one block."""
        pieces = self.blocks if self.strided else self.blocks // math.gcd(self.blocks, self.size)
        if len(x) % pieces:
            raise ConfigError(
                f"batch norm in {self.blocks} blocks on {self.size} ranks: each rank's {len(x)} images of a "
                f"micro-batch cannot be cut into {pieces} equal parts; change norm.splits, batch or accumulate"
            )
        if self.strided:
            return x.unflatten(0, (len(x) // pieces, pieces)).transpose(0, 1)
        return x.unflatten(0, (pieces, len(x) // pieces))

    def _join(self, pieces: Tensor, count: int) -> tuple[Tensor, Tensor, int]:
        """All ranks' pieces, [n, 2, C] of ``count`` values a channel -> mean and biased variance [blocks, C], values a
        block and channel."""
        parts = len(pieces) // self.blocks
        if self.strided:  # piece b of each rank belongs to block b
            pieces = pieces.unflatten(0, (parts, self.blocks)).transpose(0, 1)
        else:
            pieces = pieces.unflatten(0, (self.blocks, parts))
        means, squares = pieces.unbind(2)
        mean = means.mean(1)
        squares = squares.sum(1) + count * (means - mean[:, None]).square().sum(1)
        self._check_values(count * parts)
        return mean, squares / (count * parts), count * parts

    def _check_values(self, count: int) -> None:
        """``count``: of a block, values a channel."""
        if count < 2:
            raise ConfigError(
                f"batch norm in {self.blocks} blocks: a block has one value a channel, which has no variance; "
                f"use larger batches or fewer norm.splits"
            )

    def _block(self, pieces: int, device: torch.device) -> Tensor:
        """The block that each of this rank's pieces lies in."""
        own = torch.arange(pieces, device=device)
        return own if self.strided else (self.rank * pieces + own) * self.blocks // (self.size * pieces)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Moves the running statistics (buffers [C]) towards this batch's."""
        share = self.momentum or 0.0
        for running, new in ((self.running_mean, mean), (self.running_var, variance)):
            assert running is not None
            running.lerp_(new.to(running.dtype), share)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)


def channels_last(x: Tensor) -> bool:
    """Whether images lie in memory with their channels last."""
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def layer(settings: Norm, world: World | None) -> Callable[[int], nn.Module]:
    """The norm that the settings name, as a function of the number of channels."""
    if settings.absent:
        return lambda channels: nn.Identity()
    if settings.kind == "none":
        return lambda channels: nn.GroupNorm(math.gcd(settings.groups, channels), channels)
    return lambda channels: build(settings, channels, world)


def build(
    settings: Norm, channels: int, world: World | None, kind: type[BatchNorm] = BatchNorm, **options: Any
) -> BatchNorm:
    """The batch norm that the settings name; ``options``: of `BatchNorm`."""
    ranks = world.size if world else 1
    blocks = {"global": 1, "shuffle": settings.splits, "split": settings.splits, "local": ranks}[settings.kind]
    return kind(channels, blocks, world, **options)


@contextmanager
def untracked(module: nn.Module) -> Iterator[None]:
    """Inside, batch norms still normalise by their batch's statistics, but their running statistics are restored at
    the end."""
    with torch.no_grad():
        before = {n: b.clone() for n, b in module.named_buffers() if "running_" in n or "num_batches" in n}
        yield
        for name, value in before.items():
            module.get_buffer(name).copy_(value)


@contextmanager
def uncounted(module: nn.Module) -> Iterator[None]:
    """Inside, batch norms count what they see in copies of their running statistics, which are then dropped. Unlike
    `untracked`, gradients are kept, and the statistics themselves are not touched."""
    parts = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    before = [dict(part._buffers) for part in parts]
    for part in parts:
        part._buffers.update({name: None if x is None else x.clone() for name, x in part._buffers.items()})
    try:
        yield
    finally:
        for part, buffers in zip(parts, before, strict=True):
            part._buffers.update(buffers)


def blocks(module: nn.Module) -> int:
    """The largest number of blocks of a batch norm inside the module; 0 without one."""
    return max((part.blocks for part in module.modules() if isinstance(part, BatchNorm)), default=0)


def stride(module: nn.Module) -> None:
    """Makes the blocks of every batch norm inside strided, so that a key is not normalised beside its query's
    companions (see BatchNorm)."""
    for part in module.modules():
        if isinstance(part, BatchNorm):
            part.strided = True
