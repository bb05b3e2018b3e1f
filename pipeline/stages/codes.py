"""Sparse coding: whitened patches, a dictionary learned online, certified codes, LISTA, and features to probe."""

import json
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import objectives, progress, sheets
from pipeline.board import Board
from pipeline.data.patches import Patches
from pipeline.data.shards import Shards
from pipeline.errors import ConfigError, DataError, Stopped
from pipeline.evaluation import encoders
from pipeline.objectives.base import Lasso, Setup
from pipeline.settings.nets import CNN
from pipeline.settings.stages import Codes
from pipeline.settings.training import Adam, Training
from pipeline.sparse import dictionary, features, solvers
from pipeline.sparse.dictionary import Dictionary
from pipeline.sparse.features import CodedFeatures, Coder, SparseFeatures
from pipeline.training import checkpoint, loop
from pipeline.world import World

STATISTICS = 1 << 16  # signals at most, from which whitening is estimated
LOG, SAVE = 10, 200  # batches between two points of the curve, and between two checkpoints
HELD_OUT = 2048  # signals of the test split on which everything is measured
CURVE = 50  # steps of ISTA and FISTA drawn
# At 400 steps on digits the best rate of 1e-3 to 3e-2 for 3 layers; the clip keeps 7 layers from running away.
LISTA_LR, LISTA_CLIP = 1e-2, 0.3
TARGET = 1e-6  # tolerance of the codes that LISTA is taught, and that stand for the minimum


def run(settings: Codes, seed: int, inputs: dict[str, Path], out: Path, world: World) -> dict[str, float]:
    """Learns a dictionary of the training split's patches, or of an encoder's features; measures and draws its codes;
    trains LISTA to predict them; writes the encoder."""
    shared = {"batch": settings.batch} | ({"LISTA's batch of": settings.lista_batch} if settings.lista_steps else {})
    for what, batch in shared.items():
        if batch % world.size:
            raise ConfigError(f"{what} {batch} cannot be shared evenly by {world.size} processes: change either")
    train, test = (Signals(settings, seed, inputs, split, world.device) for split in ("train", "test"))
    mean, zca = features.whitening(train.take(np.arange(min(settings.signals, STATISTICS))))
    learned = learn(settings, seed, train, mean, zca, out, world)
    coder = Coder(settings, mean, zca, learned.atoms).to(world.device)
    network = train_lista(settings, seed, train, coder, out / "lista", world) if settings.lista_steps else None
    if network is not None and settings.features == "lista":
        coder.lista.load_state_dict(network.state_dict())
    metrics = {}
    if world.main:
        board = Board(out / "held_out", -1)  # always anew: it costs a second
        metrics = measure(settings, test, coder, network, board) | {"replaced": float(learned.replaced)}
        board.close()
        export(settings, train, coder, inputs, out)
    world.barrier()
    return world.share(metrics)


class Signals:
    """The signals of one split in keyed order: contrast-normalised patches, or an encoder's features of images.

    ``size``: numbers in one; ``image``: what patches are cut from, or what the encoder was made for.
    """

    def __init__(self, settings: Codes, seed: int, inputs: dict[str, Path], split: str, device: torch.device):
        shards = Shards.open(inputs[settings.data], split)
        self.encoder = encoders.load(inputs[settings.encoder]).to(device) if settings.encoder else None
        self.image = self.encoder.image if self.encoder else shards.image(settings.side)
        self.device, self.source = device, settings.encoder
        patch, pad = (self.image.side, 0) if self.encoder else (settings.patch, settings.pad)
        self.patches = Patches(shards, self.image.side, patch, pad, seed)
        self.size = self.take(np.zeros(1, np.int64)).shape[1]

    @torch.no_grad()
    def take(self, index: np.ndarray) -> Tensor:
        """The signals at these places of the order, int64 [N] -> float32 [N, size]; not whitened yet."""
        cut = self.patches.take(index).to(self.device)
        if self.encoder is not None:
            rows = torch.cat([self.encoder(part) for part in cut.split(512)])
            if not torch.isfinite(rows).all():
                raise DataError(f"{self.source}: its features are not all finite; train it again with a lower "
                                f"learning rate")  # fmt: skip
            return rows
        return features.normalise(cut.flatten(1).float() / 255)


def learn(
    settings: Codes, seed: int, train: Signals, mean: Tensor, zca: Tensor, out: Path, world: World
) -> Dictionary:
    """The dictionary after ``signals`` signals, ``batch`` at a time, going on from a checkpoint if there is one.

    Each rank codes its share; every rank then takes in the whole batch in the same order, so that the dictionary is
    the same, to the bit on CPUs, for any number of ranks.
    """
    total, mine = settings.signals // settings.batch, settings.batch // world.size
    found = checkpoint.newest(out / "checkpoints")
    if found is None:
        first = np.arange(min(train.patches.n, max(settings.batch, 8 * settings.atoms)))
        now = dictionary.begin(whitened(train, first, mean, zca).cpu(), settings.atoms, seed)
    else:
        now = Dictionary(**found[0])
    board = Board(out if world.main else None, int(now.batches))

    def save() -> None:
        if world.main:
            checkpoint.save(out / "checkpoints", int(now.batches), now.state(), {"seed": seed}, keep=2)
        world.barrier()

    for batch in range(int(now.batches), total):
        if world.stopping():
            save()
            board.close()
            raise Stopped(f"asked to stop: saved after batch {batch} of {total}; the same command goes on from there")
        own = whitened(train, batch * settings.batch + world.rank * mine + np.arange(mine), mean, zca)
        codes = solvers.encode(own, now.atoms.to(own), settings.penalty, settings.tolerance)
        y, z = world.gather(own), world.gather(codes.z)
        if (batch + 1) % LOG == 0 or batch + 1 == total:
            values = {"codes/objective": solvers.energy(y, now.atoms.to(y), z, settings.penalty).mean()}
            values["codes/nnz"] = (z != 0).sum(1).double().mean()
            gap = world.gather(codes.gap.amax()[None]).amax()
            board.scalars(batch + 1, {k: float(v) for k, v in values.items()} | {"codes/gap": float(gap)})
            if world.main:
                progress.report(out, batch + 1, total, f"objective {float(values['codes/objective']):.4f}")
        dictionary.update(now, y.cpu(), z.cpu())
        if (batch + 1) % SAVE == 0 or batch + 1 == total:
            save()
    board.close()
    return now


def whitened(signals: Signals, index: np.ndarray, mean: Tensor, zca: Tensor) -> Tensor:
    """Signals at these places, whitened and scaled to norm 1: float32 [N, size]."""
    raw = signals.take(index)
    return features.unit((raw - mean.to(raw)) @ zca.to(raw))[0]


class MicroBatch(NamedTuple):
    views: tuple[Tensor, ...]
    ids: Tensor


class SignalLoader:
    """Whitened signals for the loop, in the dictionary's order: batch t is places tB to (t+1)B. Where LISTA learns
    from codes, the exact ones beside them."""

    def __init__(self, settings: Codes, train: Signals, coder: Coder, batch: int, world: World):
        self.settings, self.train, self.coder, self.batch, self.world = settings, train, coder, batch, world
        self.steps_per_epoch = max(1, train.patches.n // batch)
        self.seconds: dict[str, float] = {}
        self.bad = 0

    def steps(self, start: int):
        """(step, epoch, this rank's one micro-batch) from ``start`` on."""
        mine = self.batch // self.world.size
        for step in range(start, self.settings.lista_steps):
            index = step * self.batch + self.world.rank * mine + np.arange(mine)
            y = whitened(self.train, index, self.coder.mean, self.coder.zca)
            views = (y, self.exact(y)) if self.settings.lista.loss == "code" else (y,)
            yield step, step // self.steps_per_epoch, [MicroBatch(views, torch.from_numpy(index).to(y.device))]

    def exact(self, y: Tensor) -> Tensor:
        return solvers.encode(y, self.coder.dictionary, self.settings.penalty, TARGET).z


def train_lista(settings: Codes, seed: int, train: Signals, coder: Coder, out: Path, world: World) -> nn.Module:
    """LISTA on the one loop, for ``lista_steps`` steps -> the network."""
    if world.main:
        out.mkdir(exist_ok=True)
    world.barrier()
    steps = settings.lista_steps
    training = Training(
        batch=settings.lista_batch, steps=steps, optimiser=Adam(lr=LISTA_LR), clip=LISTA_CLIP, snapshots=0
    )
    setup = Setup(train.image, train.patches.n, CNN(), world, seed, Lasso(coder.dictionary, settings.penalty))
    objective = objectives.build(settings.lista, setup)
    loader = SignalLoader(settings, train, coder, settings.lista_batch, world)
    loop.train(
        objective, loader, training, total=steps, seed=seed, out=out, world=world,
        export=lambda encoder, folder: None,
    )  # fmt: skip
    return objective.encoder.eval()


@torch.no_grad()
def measure(settings: Codes, test: Signals, coder: Coder, lista: nn.Module | None, board: Board) -> dict[str, float]:
    """Codes of held-out signals: what they cost, how exact they are, which atoms they use; and the pictures."""
    index = np.arange(min(HELD_OUT, test.patches.n))
    y, d = whitened(test, index, coder.mean, coder.zca), coder.dictionary
    codes = solvers.encode(y, d, settings.penalty, settings.tolerance)
    gap, violation = solvers.certify(y, d, codes.z, settings.penalty)
    cost = solvers.energy(y, d, codes.z, settings.penalty)
    lost = (y - codes.z @ d.T).square().sum() / y.square().sum()
    share = (codes.z != 0).double().mean(0).cpu()
    board.histogram("codes/usage", 0, share.numpy())
    order = share.argsort(descending=True, stable=True)
    if test.encoder is None:
        board.image("codes/dictionary", 0, atoms(d.cpu()[:, order], test.image.channels, settings.patch))
    board.image("codes/strongest", 0, strongest(test, index, codes.z.cpu()[:, order]))
    metrics = {
        "objective": float(cost.mean()),
        "gap": float(gap.max()),
        "violation": float(violation.max()),
        "nnz": float((codes.z != 0).sum(1).double().mean()),
        "dead": float((share == 0).sum()),
        "alive": float((share > 0).double().mean()),
        "explained": 1 - float(lost),
    }
    board.scalars(0, {f"codes/{k}": v for k, v in metrics.items()})
    return metrics | curves(settings, y, d, lista, board)


def curves(settings: Codes, y: Tensor, d: Tensor, lista: Any, board: Board) -> dict[str, float]:
    """Excess energy (P(z_n) - min P) / min P after n steps of ISTA, of FISTA and n layers of LISTA, drawn with the
    step as abscissa -> each after as many steps as LISTA has layers."""
    least = solvers.energy(y, d, solvers.encode(y, d, settings.penalty, TARGET).z, settings.penalty)

    def excess(z: Tensor) -> float:
        return float((solvers.energy(y, d, z, settings.penalty).sum() - least.sum()) / least.sum())

    gram, q, step = d.T @ d, y @ d, 1 / solvers.curvature(d)
    lines: dict[str, list[float]] = {}
    for name in ("ista", "fista"):
        at = solvers.begin(q)
        lines[name] = [excess(at.z)]
        for _ in range(CURVE):
            at = solvers.advance(at, gram, q, settings.penalty, step, momentum=name == "fista")
            lines[name].append(excess(at.z))
    if lista is not None:
        lines["lista"] = [lines["ista"][0]]
        for layers in range(1, settings.lista.layers + 1):
            shallow = copy(lista)
            shallow.layers = layers
            lines["lista"].append(excess(shallow(y)))
    for n in range(CURVE + 1):
        board.scalars(n, {f"codes/{name}": values[n] for name, values in lines.items() if n < len(values)})
    return {f"{name}_excess": values[settings.lista.layers] for name, values in lines.items()}


def atoms(d: Tensor, channels: int, side: int) -> np.ndarray:
    """Atoms [p, k] as pictures, grey where they are 0, each to its own full contrast -> one sheet, uint8."""
    pictures = d.T.reshape(-1, channels, side, side)
    return sheets.tile(0.5 + 0.5 * pictures / pictures.abs().amax((1, 2, 3), keepdim=True), columns=16)


def strongest(test: Signals, index: np.ndarray, z: Tensor, rows: int = 16, columns: int = 9) -> np.ndarray:
    """A row an atom, the most used first: the patches or images whose codes give it most weight -> one sheet."""
    top = (-z[:, :rows].abs()).argsort(dim=0, stable=True)[:columns].T
    return sheets.tile(test.patches.take(index[top.flatten().numpy()]).float() / 255, top.shape[1])


def export(settings: Codes, train: Signals, coder: Coder, inputs: dict[str, Path], out: Path) -> None:
    """Writes the encoder; one of another encoder's features holds that one, too."""
    chosen = settings.model_dump(mode="json", exclude={"place", "threads", "seed"})  # not where, nor how, it ran
    spec: dict[str, Any] = {"codes": chosen, "image": encoders.describe(train.image)}
    module: nn.Module = SparseFeatures(coder)
    if train.encoder is not None:
        assert settings.encoder is not None
        spec["inner"] = json.loads((inputs[settings.encoder] / encoders.SPEC).read_text())
        module = CodedFeatures(train.encoder, coder)
    encoders.save(out, "sparse", module, spec)
