"""Sparse coding: whitened patches, a dictionary learned online, certified codes, LISTA, and features to probe."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import objectives, progress
from pipeline.board import Board
from pipeline.data.patches import SignalLoader, Signals
from pipeline.data.shards import Shards
from pipeline.errors import ConfigError, Stopped
from pipeline.evaluation import codes as evaluation
from pipeline.evaluation import encoders
from pipeline.objectives import models
from pipeline.objectives.base import Lasso, Setup
from pipeline.settings.nets import CNN
from pipeline.settings.sparse import Coding
from pipeline.settings.stages import Codes
from pipeline.settings.training import Adam, Training
from pipeline.sparse import dictionary, features, solvers
from pipeline.sparse.dictionary import Dictionary
from pipeline.sparse.features import CodedFeatures, Coder, SparseFeatures, Whitening
from pipeline.training import checkpoint, loop
from pipeline.world import World


def run(settings: Codes, seed: int, inputs: dict[str, Path], out: Path, world: World) -> dict[str, float]:
    """Learns a dictionary of the training split's patches, or of an encoder's features; measures and draws its codes;
    trains LISTA to predict them; writes the encoder."""
    check_shares(settings, world)
    train, test = signals(settings, seed, inputs, world.device)
    statistics = train.take(np.arange(min(settings.signals, settings.whitening_signals)))
    white = features.whitening(statistics, settings.whitening)
    learned = learn(settings, seed, train, white, out, world)
    coder = Coder(settings, *white, learned.atoms).to(world.device)
    network = train_lista(settings, seed, train, coder, out / "lista", world) if settings.lista_steps else None
    if network is not None:
        coder = Coder(settings, *white, network.atoms()).to(world.device)
        if settings.features == "lista":
            coder.lista.load_state_dict(network.state_dict() | {"dictionary": coder.dictionary})
    metrics = {}
    if world.main:
        board = Board(out / "held_out", -1)  # always anew: it costs a second
        metrics = evaluation.measure(settings, test, coder, network, board) | {"replaced": float(learned.replaced)}
        board.close()
        export(settings, train, coder, inputs, out)
    world.barrier()
    return world.share(metrics)


def check_shares(settings: Codes, world: World) -> None:
    """Raises ConfigError where a batch does not divide over the processes."""
    for key, text in settings.unequal_shares(range(world.size, world.size + 1)):
        raise ConfigError(f"{key}: {text}")


def signals(settings: Codes, seed: int, inputs: dict[str, Path], device: torch.device) -> tuple[Signals, Signals]:
    """Those of the training split, and of the test split."""
    encoder = encoders.load(inputs[settings.encoder]).to(device) if settings.encoder else None
    train, test = (Shards.open(inputs[settings.data], split) for split in ("train", "test"))
    return Signals(settings, train, seed, device, encoder), Signals(settings, test, seed, device, encoder)


def learn(settings: Codes, seed: int, train: Signals, white: Whitening, out: Path, world: World) -> Dictionary:
    """The dictionary after ``signals`` signals, ``batch`` at a time, going on from a checkpoint if there is one.

    Each rank codes its share; every rank then takes in the whole batch in the same order, so that the dictionary is
    the same, to the bit on CPUs, for any number of ranks.
    """
    total, share = settings.signals // settings.batch, settings.batch // world.size
    learned = restore(settings, seed, train, white, out)
    board = Board(out if world.main else None, int(learned.batches))

    def save() -> None:
        if world.main:
            checkpoint.save(out / "checkpoints", int(learned.batches), learned.state(), {"seed": seed}, keep=2)
        world.barrier()

    for batch in range(int(learned.batches), total):
        if world.stopping():
            save()
            board.close()
            raise Stopped(f"asked to stop: saved after batch {batch} of {total}; the same command goes on from there")
        signals = white(train.take(batch * settings.batch + world.rank * share + np.arange(share)))
        codes = solvers.encode(signals, learned.atoms.to(signals), settings.penalty, settings.tolerance)
        y, z = world.gather(signals), world.gather(codes.z)
        if (batch + 1) % settings.log_steps == 0 or batch + 1 == total:
            values = scalars(settings, y, learned.atoms.to(y), z, world.gather(codes.gap.amax()[None]))
            board.scalars(batch + 1, values)
            if world.main:
                progress.report(out, batch + 1, total, "updates", objective=values["codes/objective"])
        dictionary.update(learned, y.cpu(), z.cpu())
        if (batch + 1) % settings.save_steps == 0 or batch + 1 == total:
            save()
    board.close()
    return learned


def restore(settings: Codes, seed: int, train: Signals, white: Whitening, out: Path) -> Dictionary:
    """The dictionary of the newest checkpoint, or one whose atoms are signals."""
    newest = checkpoint.newest(out / "checkpoints")
    if newest is not None:
        return Dictionary(**newest[0])
    first = np.arange(min(train.n, max(settings.batch, 8 * settings.atoms)))
    return dictionary.begin(white(train.take(first)).cpu(), settings.atoms, seed)


def scalars(settings: Codes, y: Tensor, atoms: Tensor, z: Tensor, gaps: Tensor) -> dict[str, float]:
    """Of one batch's codes; ``gaps``: the largest of each rank."""
    return {
        "codes/objective": float(solvers.energy(y, atoms, z, settings.penalty).mean()),
        "codes/nnz": float((z != 0).sum(1).double().mean()),
        "codes/gap": float(gaps.amax()),
    }


def train_lista(settings: Codes, seed: int, train: Signals, coder: Coder, out: Path, world: World) -> Any:
    """Trains LISTA on the one loop, for ``lista_steps`` steps, and with psd the dictionary; returns the network."""
    if world.main:
        out.mkdir(exist_ok=True)
    world.barrier()
    training = Training(
        batch=settings.lista_batch, steps=settings.lista_steps, optimiser=Adam(lr=settings.lista_lr),
        clip=settings.lista_clip, snapshots=0,
    )  # fmt: skip
    setup = Setup(train.image, train.n, CNN(), world, seed, Lasso(coder.dictionary, settings.penalty))
    objective = objectives.build(settings.lista, setup)
    loop.train(
        objective, SignalLoader(settings, train, coder, world), training, total=settings.lista_steps, seed=seed,
        out=out, world=world, export=lambda encoder, folder: None,
    )  # fmt: skip
    progress.clear(out)
    return objective.encoder.eval()


def export(settings: Codes, train: Signals, coder: Coder, inputs: dict[str, Path], out: Path) -> None:
    """Writes the encoder; one of another encoder's features holds that one, too."""
    coding = settings.model_dump(mode="json", include=set(Coding.model_fields))
    spec: dict[str, Any] = {"codes": coding, "image": encoders.describe(train.image)}
    module: nn.Module = SparseFeatures(coder)
    if train.encoder is not None:
        assert settings.encoder is not None
        spec["inner"] = json.loads((inputs[settings.encoder] / models.SPEC).read_text())
        module = CodedFeatures(train.encoder, coder)
    encoders.save(out, module, spec)
