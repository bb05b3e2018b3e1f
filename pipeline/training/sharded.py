"""Weights, gradients and the optimiser's state in pieces over the ranks, by torch's FSDP (arXiv 2304.11277).

A network's blocks are made whole one at a time, when they are used. Whatever leaves the ranks, a checkpoint, an
encoder or a scalar, is made whole first, so that it does not tell how many there were.
"""

import warnings
from collections.abc import Iterable
from copy import deepcopy

import torch
from torch import Tensor, nn

from pipeline.world import World


def cut(networks: Iterable[nn.Module], world: World) -> None:
    """Leaves each rank its piece of every weight of ``networks``, block by block; gradients come out averaged."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # Of heads that end in a norm. Nothing is done in place to what they return.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    mesh = init_device_mesh(world.device.type, (world.size,))
    for network in networks:
        rows = [part for part in network.modules() if isinstance(part, nn.Sequential)]
        blocks = [block for row in rows for block in row if any(True for _ in block.children())]
        for part in [*reversed(blocks), network]:  # the innermost first
            if any(True for _ in part.parameters()):
                fully_shard(part, mesh=mesh, reshard_after_forward=True)


def piece(x: object) -> bool:
    """Whether it is a rank's piece of a tensor."""
    return hasattr(x, "full_tensor")


def whole(x: Tensor) -> Tensor:
    """All of a tensor that ranks hold pieces of, from all of them together; any other as it is."""
    return x.full_tensor() if piece(x) else x  # type: ignore[operator]


def like(held: Tensor, x: Tensor) -> Tensor:
    """This rank's piece of a whole x, cut as ``held`` is and laid out in memory as it is."""
    if not piece(held):
        return torch.empty_like(held).copy_(x)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x, held.device_mesh, held.placements)  # type: ignore[attr-defined]


def filled(shape: nn.Module, network: nn.Module) -> nn.Module:
    """A copy of ``shape``, the network as it was before it was cut, on the meta device, with all of its weights.
    Called on all ranks together."""
    copy = deepcopy(shape)
    copy.load_state_dict({name: whole(x) for name, x in network.state_dict().items()}, assign=True)
    return copy
