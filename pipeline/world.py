"""The processes that run a stage: rank, device, threads, and the collectives that the losses differentiate through.

Only this file uses torch.distributed and Accelerate. With one process every collective is the identity, so the same
code computes the same global loss on any number of ranks.
"""

import ctypes
import os
import random
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from pipeline import errors, launcher
from pipeline.errors import ClusterError, PipelineError


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        x = x.detach().clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, *grads):
        (grad,) = grads
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.rows = x.shape[0]
        return _all_rows(x)

    @staticmethod
    def backward(ctx, *grads):
        # Every rank's loss depends on these rows, so their gradients are summed; DDP averages over ranks later.
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad)
        start = dist.get_rank() * ctx.rows
        return grad[start : start + ctx.rows]


def _all_rows(x: Tensor) -> Tensor:
    x = x.detach().contiguous()
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x)
    return torch.cat(parts)


def meet(backend: str, limit: float) -> None:
    """Joins the process group that a launcher announced by RANK, WORLD_SIZE and MASTER_*.

    Raises ClusterError where not all processes have joined after ``limit`` seconds. The timeout of collectives is 12
    hours, since the other ranks wait while rank 0 runs some stages alone.
    """
    env = os.environ
    if dist.is_initialized() or launcher.size() == 1:
        return
    try:
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=limit)))
    except (dist.DistError, ValueError) as error:
        where = f"{env.get('MASTER_ADDR')}:{env.get('MASTER_PORT')}"
        raise ClusterError(
            f"rank {env.get('RANK')} of {env['WORLD_SIZE']} did not meet the others at {where} within {limit:g} s "
            f"({str(error).splitlines()[0]}): check that all were started and reach that address, or give them longer "
            f"by PIPELINE_JOIN_S"
        ) from None
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timedelta(hours=12))


def keep_memory() -> None:
    """Makes glibc's malloc keep the memory that a step frees, for the next step.

    By default it maps every tensor of 32 MiB or more anew and the kernel zeroes its pages, which takes half of the
    time of a batch norm or a ReLU of that size.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(-4, 0)  # M_MMAP_MAX: no block gets a mapping of its own
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: the heap is never trimmed


class World:
    """This process's rank among the ``size`` processes of a stage, its device, and the collectives between them.

    ``threads``: intra-op threads, set before any operation. ``stop``: called once a step; true when this process was
    asked to save and exit. The processes are those that a launcher announced by RANK, WORLD_SIZE, LOCAL_RANK and
    MASTER_*, or those of a process group that exists already (Ray Train), or else this one alone. Raises ClusterError
    where they do not come together.
    """

    def __init__(self, threads: int = 1, stop: Callable[[], bool] | None = None):
        torch.set_num_threads(threads)
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs

        cuda = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true")
        if not cuda:
            keep_memory()
        meet("nccl" if cuda else "gloo", launcher.number("PIPELINE_JOIN_S", 300))
        self.accelerator = Accelerator(
            cpu=not cuda,
            mixed_precision="no",  # the loop sets autocast; Accelerate's is fixed for a process
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        torch.set_num_threads(threads)  # Accelerate sets its own on CPU
        self.rank = self.accelerator.process_index
        self.size = self.accelerator.num_processes
        self.device = self.accelerator.device
        self.threads = threads
        self._stop = stop or (lambda: False)
        # This package does not draw from these generators; a library that does then repeats its numbers.
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)

    @classmethod
    def single(
        cls, threads: int = 1, stop: Callable[[], bool] | None = None, device: str | torch.device | None = None
    ) -> "World":
        """A world of this process alone, whatever a launcher announced, so that no collective waits for other ranks.
        With a ``device``, such as "meta" (shapes without values), the process's threads and seeds are not changed."""
        if device is None:
            world = cls(threads, stop)
        else:
            world = cls.__new__(cls)
            world.device, world.threads, world._stop = torch.device(device), threads, stop or (lambda: False)
        world.rank, world.size = 0, 1
        return world

    @property
    def main(self) -> bool:
        return self.rank == 0

    def fast_bf16(self) -> bool:
        """Whether the device computes in bf16 natively; a CPU does with AVX512-BF16 or AMX."""
        if self.device.type != "cpu":
            return True
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())

    def sum(self, x: Tensor) -> Tensor:
        """The sum over ranks, same shape. Differentiable: its backward sums the gradients over ranks."""
        return x if self.size == 1 else _Sum.apply(x)  # type: ignore[return-value]

    def gather(self, x: Tensor) -> Tensor:
        """All ranks' rows in rank order: [n, ...] -> [size n, ...]. Differentiable if x requires grad."""
        if self.size == 1:
            return x
        return _Gather.apply(x) if x.requires_grad else _all_rows(x)  # type: ignore[return-value]

    def share(self, value: Any = None) -> Any:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def from_first(self, make: Callable[[], Any]) -> Any:
        """Calls ``make`` on rank 0 and returns its result on every rank; an error for the user that it raises is
        raised on every rank."""
        result: Any = None
        if self.main:
            try:
                result = make()
            except Exception as error:
                result = errors.explain(error)
                if result is None:
                    raise
        result = self.share(result)
        if isinstance(result, PipelineError):
            raise result
        return result

    def everyone(self, value: Any) -> list[Any]:
        """The values of all ranks, in rank order, on every rank."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def stopping(self) -> bool:
        """Whether any rank was asked to stop. All ranks get the same answer, since all must save together."""
        stop = self._stop()
        if self.size == 1:
            return stop
        flag = torch.tensor(int(stop), device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def barrier(self) -> None:
        if self.size > 1:
            self.accelerator.wait_for_everyone()

    def wrap(self, model: nn.Module) -> nn.Module:
        """The module in DDP, which averages gradients over ranks in backward; on one rank the module itself."""
        if self.size == 1:
            return model.to(self.device)
        with warnings.catch_warnings():  # torch 2.15 deprecates the option without a substitute
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return self.accelerator.prepare_model(model)

    def close(self) -> None:
        """Leaves the process group, if this process is in one."""
        self.accelerator.end_training()
        if dist.is_initialized():
            dist.destroy_process_group()
