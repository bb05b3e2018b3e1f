"""Shards weights, gradients and the optimiser's state over the ranks by torch's FSDP2 (arXiv 2304.11277).

The blocks of a network are gathered one at a time when they are used. Checkpoints, encoders and scalars are made from
full tensors, so that they do not depend on the number of ranks.
"""

import warnings
from collections.abc import Iterable
from copy import deepcopy

import torch
from torch import Tensor, nn

from pipeline.world import World


def shard_modules(modules: Iterable[nn.Module], world: World) -> None:
    """Shards every weight of the modules over the ranks, block by block. Backward then averages the gradients."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # FSDP warns of a module whose output is a view (a head that ends in a norm), because writing into it in place
    # would lose its backward hook. Nothing here writes into a head's output.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    mesh = init_device_mesh(world.device.type, (world.size,))
    for module in modules:
        sequences = [part for part in module.modules() if isinstance(part, nn.Sequential)]
        blocks = [block for sequence in sequences for block in sequence if any(True for _ in block.children())]
        for part in [*reversed(blocks), module]:  # the innermost first
            if any(True for _ in part.parameters()):
                fully_shard(part, mesh=mesh, reshard_after_forward=True)


def is_sharded(x: object) -> bool:
    """Whether this rank holds only a shard of the tensor."""
    return hasattr(x, "full_tensor")


def full_tensor(x: Tensor) -> Tensor:
    """Gathers a sharded tensor from all ranks, which call it together; returns any other tensor unchanged."""
    return x.full_tensor() if is_sharded(x) else x  # type: ignore[operator]


def shard_like(example: Tensor, x: Tensor) -> Tensor:
    """Converts the full tensor x to the layout of ``example``: sharded as that is, and in its memory format."""
    if not is_sharded(example):
        return torch.empty_like(example).copy_(x)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x, example.device_mesh, example.placements)  # type: ignore[attr-defined]


def unsharded_copy(skeleton: nn.Module, module: nn.Module) -> nn.Module:
    """A copy of a sharded module with full tensors; all ranks call it together. ``skeleton``: a copy of the module on
    the meta device, from before it was sharded."""
    copy = deepcopy(skeleton)
    copy.load_state_dict({name: full_tensor(x) for name, x in module.state_dict().items()}, assign=True)
    return copy
