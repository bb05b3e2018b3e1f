"""The blocks of a deep network: frozen from the first on, or computed again in the backward pass."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from pipeline.errors import ConfigError
from pipeline.nets import norm

CONTAINERS = nn.Sequential, nn.ModuleList


def blocks(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The blocks by name in their order: modules of several layers that stand in a list of modules, the outermost
    ones."""
    for name, child in module.named_children():
        listed = isinstance(module, CONTAINERS) and not isinstance(child, CONTAINERS)
        if listed and any(True for _ in child.children()):
            yield name, child
        else:
            yield from ((f"{name}.{inner}", block) for inner, block in blocks(child))


def freeze(model: nn.Module, count: int) -> None:
    """The first blocks, and whatever stands before them, are not trained, and their batch norms normalise by their
    running statistics, which stay as they are. Raises ConfigError where there are fewer."""
    names = [name for name, _ in blocks(model)]
    if count > len(names):
        raise ConfigError(f"net.frozen: {count}, and the network has {len(names)} blocks; expected at most so many")
    weights = list(model.named_parameters())
    last = max(i for i, (name, _) in enumerate(weights) if name.startswith(f"{names[count - 1]}."))
    for _, p in weights[: last + 1]:
        p.requires_grad_(False)
    for part in model.modules():
        if isinstance(part, norm.BatchNorm) and part.weight is not None and not part.weight.requires_grad:
            part.frozen = True


def recompute(model: nn.Module) -> None:
    """Keeps of each block its input alone (Chen et al. 2016, arXiv 1604.06174): what is inside is computed again, to
    the same bits, when the backward pass comes to it. Raises ConfigError where there are no blocks."""
    found = [block for _, block in blocks(model)]
    if not found:
        raise ConfigError("net.checkpointing: the network has no blocks to compute again; leave it out")
    for block in found:
        contexts = partial(both_contexts, block)
        block.forward = partial(
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
        )


def both_contexts(block: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Of the forward pass, and of its repetition, which batch norm does not count."""
    return nullcontext(), norm.uncounted(block)


@contextmanager
def kept_whole(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Inside, nothing is computed again; yields the blocks of which that is true outside."""
    found = [part for part in model.modules() if "forward" in vars(part)]
    again = [vars(part).pop("forward") for part in found]
    try:
        yield found
    finally:
        for part, forward in zip(found, again, strict=True):
            part.forward = forward
