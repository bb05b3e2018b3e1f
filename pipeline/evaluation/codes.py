"""What the codes of held-out signals are worth: what they cost, how exact they are, which atoms they use."""

from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.board import Board
from pipeline.data.patches import EXACT, Signals
from pipeline.evaluation import figures
from pipeline.settings.stages import Codes
from pipeline.sparse import solvers
from pipeline.sparse.features import Coder, Whitening


@torch.no_grad()
def measure(settings: Codes, test: Signals, coder: Coder, lista: nn.Module | None, board: Board) -> dict[str, float]:
    """Codes the first ``held_out`` test signals; returns their scalars, and shows them with the atoms' figures."""
    index = np.arange(min(settings.held_out, test.n))
    y, d = Whitening(coder.mean, coder.zca)(test.take(index)), coder.dictionary
    codes = solvers.encode(y, d, settings.penalty, settings.tolerance)
    usage = (codes.z != 0).double().mean(0).cpu()
    metrics = scalars(settings, y, d, codes.z, usage)
    board.histogram("codes/usage", 0, usage.numpy())
    order = usage.argsort(descending=True, stable=True)
    batches, atoms, source = settings.signals // settings.batch, None, f"Data {settings.data}."
    if test.encoder is None:
        atoms = figures.atoms(d.cpu(), test.image.channels, settings.patch)
        board.image("codes/dictionary", batches, figures.dictionary(atoms, order.tolist(), usage).of(source))
    strongest = figures.strongest(test.patches, index, codes.z.cpu(), order, usage, atoms)
    board.image("codes/strongest", batches, strongest.of(source))
    board.scalars(0, {f"codes/held_out_{k}": v for k, v in metrics.items()})
    return metrics | curves(settings, y, d, lista, board)


def scalars(settings: Codes, y: Tensor, d: Tensor, z: Tensor, usage: Tensor) -> dict[str, float]:
    """Of codes z [N, k] of signals y [N, p]; ``usage`` [k]: share of the signals that each atom is used in."""
    gap, violation = solvers.certify(y, d, z, settings.penalty)
    lost = (y - z @ d.T).square().sum() / y.square().sum()
    return {
        "objective": float(solvers.energy(y, d, z, settings.penalty).mean()),
        "gap": float(gap.max()),
        "violation": float(violation.max()),
        "nnz": float((z != 0).sum(1).double().mean()),
        "dead": float((usage == 0).sum()),
        "alive": float((usage > 0).double().mean()),
        "explained": 1 - float(lost),
    }


def curves(settings: Codes, y: Tensor, d: Tensor, lista: Any, board: Board) -> dict[str, float]:
    """Excess energy (P(z_n) - min P) / min P after n steps of ISTA, of FISTA and n layers of LISTA, drawn with the
    step as abscissa -> each after as many steps as LISTA has layers."""
    least = solvers.energy(y, d, solvers.encode(y, d, settings.penalty, EXACT).z, settings.penalty).sum()

    def excess(z: Tensor) -> float:
        return float((solvers.energy(y, d, z, settings.penalty).sum() - least) / least)

    steps = max(settings.curve_steps, settings.lista.layers)
    lines = {
        name: [excess(z) for z in solvers.iterates(y, d, settings.penalty, steps, momentum=name == "fista")]
        for name in ("ista", "fista")
    }
    if lista is not None:
        layers = range(1, settings.lista.layers + 1)
        lines["lista"] = [lines["ista"][0], *(excess(shallow(lista, n)(y)) for n in layers)]
    for n in range(steps + 1):
        board.scalars(n, {f"codes/{name}": values[n] for name, values in lines.items() if n < len(values)})
    return {f"{name}_excess": values[settings.lista.layers] for name, values in lines.items()}


def shallow(lista: Any, layers: int) -> Any:
    """The first layers of a LISTA network."""
    network = copy(lista)
    network.layers = layers
    return network
