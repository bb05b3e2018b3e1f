"""Evaluates encoders: the same images, splits and label draws for all, raw pixels and an untrained net beside them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline import progress, tensors
from pipeline.board import last_step
from pipeline.data.images import SquareImages
from pipeline.errors import Stopped
from pipeline.evaluation import encoders, predictions, results, scores
from pipeline.evaluation.features import features
from pipeline.evaluation.scores import Data, Scores
from pipeline.files import replacing, write_json
from pipeline.settings.stages import Probe
from pipeline.world import World

SMALL = 64  # pixels on a side up to which raw pixels are taken as packed; larger images are shrunk to half of it


class Entry(NamedTuple):
    """An encoder of a row's curve: the training step it is from, and how to get it."""

    step: int
    load: Callable[[], encoders.Encoder]


def run(settings: Probe, seed: int, inputs: dict[str, Path], out: Path, world: World) -> dict[str, Any]:
    """Probes every encoder along its snapshots, then writes rows, figures and the protocol they were got by.

    An encoder's scores are written once they are known: a start that was cut off goes on with the next."""
    data = scores.load(settings, seed, inputs[settings.data])
    rows = line_up(settings, seed, inputs, data)
    total, done = sum(len(row) for row in rows.values()), 0

    def halt() -> None:
        if world.stopping():
            raise Stopped(f"asked to stop: evaluated {done} of {total} encoders; the same command goes on from there")

    extract = Extractor(settings, data, out, world, halt)
    curves: results.Curves = {name: {} for name in rows}
    tests: dict[str, Tensor] = {}
    for name, row in rows.items():
        for entry in row:
            halt()
            path = out / "scores" / f"{name}-{entry.step:08d}.json"
            point = read(path)
            if point is None or entry is row[-1]:
                train, tests[name] = extract(entry.load(), name if entry is row[-1] else None)
                if point is None:
                    point = scores.evaluate(settings, data, name, train, tests[name], world.device)
                    if entry is row[-1]:
                        write_predicted(out, name, data, point)
                    write_json(path, point.numbers())
            curves[name][entry.step] = point
            done += 1
            text = f"{name}: {100 * point.linear:.1f} % at step {entry.step}"
            progress.report(out, done, total, "encoders", text)
    networks = untrained(settings, inputs)
    metrics = results.metrics(settings, seed, data, curves, networks)
    write_json(out / "results.json", results.results(metrics, curves, data, networks))
    results.write(data, curves, tests, extract.extremes(), metrics, out)
    return metrics


class Extractor:
    """Features of both splits under any encoder; the images are decoded once for each side that an encoder takes."""

    def __init__(self, settings: Probe, data: Data, out: Path, world: World, halt: Callable[[], None]):
        self.limit, self.data, self.out, self.world, self.halt = settings.train_examples, data, out, world, halt
        self.pictures: dict[int, tuple[SquareImages, SquareImages]] = {}

    def __call__(self, encoder: encoders.Encoder, name: str | None) -> tuple[Tensor, Tensor]:
        """Of the training split [n, D] and of the test split [m, D]; ``name``: of the files that hold them from one
        start to the next, none without it."""
        side = encoder.image.side
        if side not in self.pictures:
            train, test = self.data.train, self.data.test
            self.pictures[side] = SquareImages(train, side, np.arange(train.n)[: self.limit]), SquareImages(test, side)
        train, test = (
            features(encoder, pictures, self.world.device, self.file(f"{name}-{split}") if name else None, self.halt)
            for split, pictures in zip(("train", "test"), self.pictures[side], strict=True)
        )
        return train, test

    def file(self, name: str) -> Path:
        """The file that holds features from one start to the next."""
        return self.out / f"features/{name}.safetensors"

    def extremes(self) -> tuple[SquareImages, SquareImages]:
        """The test images at the smallest and at the largest of these sides."""
        return self.pictures[min(self.pictures)][1], self.pictures[max(self.pictures)][1]


def line_up(settings: Probe, seed: int, inputs: dict[str, Path], data: Data) -> dict[str, list[Entry]]:
    """The rows: every encoder along its training, its head if asked for, raw pixels, and each network without
    training."""
    rows = {}
    for name in settings.encoders:
        rows[name] = along(inputs[name], encoders.load)
        if settings.projection and encoders.load_projection(inputs[name]):
            rows[f"{name}_projection"] = along(inputs[name], encoders.load_projection)
    last = max(entry.step for row in rows.values() for entry in row)
    height, width = data.train.manifest["height"], data.train.manifest["width"]
    image = data.train.image(height if height and height == width <= SMALL else SMALL // 2)
    rows["raw_pixels"] = [Entry(last, lambda: encoders.pixels(image))]
    for name, owners in untrained(settings, inputs).items():
        network = encoders.network(inputs[owners[0]])
        assert network is not None
        rows[name] = [Entry(last, lambda network=network: encoders.untrained(network, seed))]
    return rows


def untrained(settings: Probe, inputs: dict[str, Path]) -> dict[str, list[str]]:
    """The untrained rows, and the encoders whose network each is: ``random`` the first's, others called after the
    first encoder that has them. A dictionary of patches is no network: its codes have none."""
    owners: dict[str, list[str]] = {}
    for name in settings.encoders:
        network = encoders.network(inputs[name])
        if network is not None:
            owners.setdefault(json.dumps(network, sort_keys=True), []).append(name)
    return {f"random_{names[0]}" if i else "random": names for i, names in enumerate(owners.values())}


def along(folder: Path, load: Callable[[Path], Any]) -> list[Entry]:
    """An artifact's encoders by training step: its snapshots, and the finished one last."""
    entries = [Entry(int(p.name), lambda p=p: load(p)) for p in sorted((folder / "snapshots").glob("[0-9]*"))]
    last = last_step(folder) or 1
    return [*entries, Entry(max([last, *(entry.step + 1 for entry in entries)]), lambda: load(folder))]


def write_predicted(out: Path, name: str, data: Data, point: Scores) -> None:
    """Which class each test image was taken for by a finished encoder, and its own as ``labels``: int32 tensors."""
    with replacing(predictions.path(out, name)) as part:
        tensors.write(point.predicted | {"labels": torch.from_numpy(data.y_test).to(torch.int32)}, part)


def read(path: Path) -> Scores | None:
    """The scores that an earlier start wrote, if it did."""
    return Scores(**json.loads(path.read_text())) if path.exists() else None
