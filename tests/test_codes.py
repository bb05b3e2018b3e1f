"""The codes stage on packed digits: what it writes, its streams, and that nothing but the seed decides the result."""

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data.images import images
from pipeline.data.patches import Patches
from pipeline.data.shards import Shards
from pipeline.errors import ConfigError, DataError, Stopped
from pipeline.evaluation import encoders
from pipeline.nets import trunks
from pipeline.objectives import models
from pipeline.settings.nets import CNN
from pipeline.settings.objectives import PSD
from pipeline.settings.stage import Place
from pipeline.settings.stages import Codes
from pipeline.sparse import dictionary, features, solvers
from pipeline.stages import codes
from pipeline.training import checkpoint

SHORT = Codes(data="shards", signals=4096, batch=256, atoms=48, lista_steps=30)


def run(digits: Path, world, out: Path, settings: Codes = SHORT, **inputs: Path) -> dict[str, float]:
    out.mkdir(exist_ok=True)
    return codes.run(settings, 0, {"shards": digits, **inputs}, out, world)


def results(out: Path) -> dict[str, str]:
    """Digests of every file that the seed decides."""
    kept = [p for p in out.rglob("*") if p.is_file() and "tfevents" not in p.name and p.name != "timings.jsonl"]
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in kept}


@pytest.fixture(scope="module")
def made(digits, world, tmp_path_factory):
    out = tmp_path_factory.mktemp("codes")
    return out, run(digits, world, out)


def test_it_measures_and_exports(made, digits):
    out, metrics = made
    assert metrics["gap"] <= 1e-4 and metrics["dead"] == 0 and metrics["alive"] == 1
    assert 0.15 < metrics["objective"] < 0.35 and 2 < metrics["nnz"] < 25 and 0.7 < metrics["explained"] < 1
    assert 0 < metrics["lista_excess"] < metrics["fista_excess"] < metrics["ista_excess"]
    encoder = encoders.load(out)
    shards = Shards.open(digits, "test")
    pictures = images(shards, np.arange(20), 8)
    got = encoder(pictures)
    assert got.shape == (20, 2 * 48 * 4) and got.dtype == torch.float32
    loaded, _ = checkpoint.newest(out / "checkpoints") or ({}, {})
    assert torch.equal(encoder.module.coder.dictionary, loaded["atoms"].float())  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_dictionary_is_learned_with_what_predicts_its_codes(digits, world, tmp_path):
    """Predictive sparse decomposition: the layers alone come within 5 % of the least energy of held-out patches."""
    settings = SHORT.model_copy(update={"features": "lista", "lista": PSD(), "lista_steps": 300})
    metrics = run(digits, world, tmp_path / "psd", settings)
    assert 0 < metrics["lista_excess"] < 0.05 < metrics["fista_excess"]
    encoder: Any = encoders.load(tmp_path / "psd")
    online = checkpoint.newest(tmp_path / "psd" / "checkpoints")[0]["atoms"]  # type: ignore[index]
    d = encoder.module.coder.dictionary
    torch.testing.assert_close(d.norm(dim=0), torch.ones(48))
    assert float((d - online).norm()) > 0.1 and torch.equal(encoder.module.coder.lista.dictionary, d)


def test_what_is_shown(made):
    out, _ = made
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [10, 16] and {"codes/objective", "codes/gap", "codes/nnz"} < set(rows[0])
    assert rows[1]["codes/objective"] < rows[0]["codes/objective"]
    held = [json.loads(line) for line in (out / "held_out" / "metrics.jsonl").read_text().splitlines()]
    lines = {n: [r[f"codes/{n}"] for r in held if f"codes/{n}" in r] for n in ("ista", "fista", "lista")}
    assert len(lines["ista"]) == len(lines["fista"]) == 51 and len(lines["lista"]) == 4
    assert lines["fista"][12] < 0.5 * lines["ista"][12] and 0 <= lines["fista"][-1] < 1e-5 < lines["ista"][-1]
    assert lines["ista"] == sorted(lines["ista"], reverse=True)
    for sheet in ("codes-dictionary", "codes-strongest"):
        assert (out / "held_out" / "sheets" / f"{sheet}.png").stat().st_size > 1000


@pytest.mark.parametrize("dead_at", [0, 3, 16])
def test_stopped_anywhere_it_ends_in_the_same_bytes(made, digits, world, tmp_path, monkeypatch, dead_at):
    """Asked to stop before batch ``dead_at`` of 16, or in LISTA's training after it."""
    calls = iter(range(1000))
    with monkeypatch.context() as patch:
        patch.setattr(world, "_stop", lambda: next(calls) == dead_at + (5 if dead_at == 16 else 0))
        with pytest.raises(Stopped):
            run(digits, world, tmp_path / "again")
    assert not (tmp_path / "again" / models.SPEC).exists()
    assert run(digits, world, tmp_path / "again") == made[1]
    first, again = results(made[0]), results(tmp_path / "again")
    ignored = {n for n in (*first, *again) if n.endswith("progress.json") or "checkpoints/" in n}
    assert {k: v for k, v in first.items() if k not in ignored} == {k: v for k, v in again.items() if k not in ignored}


def test_killed_while_measuring_it_ends_in_the_same_bytes(made, digits, world, tmp_path, monkeypatch):
    out = tmp_path / "again"
    with monkeypatch.context() as patch:
        patch.setattr(codes, "export", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(digits, world, out)
    run(digits, world, out)
    assert results(out) == results(made[0])


class Ranks:
    """Threads in place of processes: what `learn` asks of a world, by a barrier."""

    def __init__(self, size: int):
        self.size, self.rows, self.meet = size, [None] * size, threading.Barrier(size)

    def world(self, rank: int):
        outer = self

        class World:
            size, main = outer.size, rank == 0

            def gather(self, x):
                outer.rows[rank] = x
                outer.meet.wait()
                rows = torch.cat(outer.rows)
                outer.meet.wait()
                return rows

            def stopping(self):
                return False

            def barrier(self):
                outer.meet.wait()

        World.rank = rank
        return World()


@pytest.mark.parametrize("size", [2, 4])
def test_any_number_of_ranks_learns_the_same_dictionary(made, digits, world, tmp_path, size):
    signals, _ = codes.signals(SHORT, 0, {"shards": digits}, world.device)
    white = features.whitening(signals.take(np.arange(4096)), SHORT.whitening)
    ranks, learned = Ranks(size), [None] * size

    def work(rank):
        learned[rank] = codes.learn(SHORT, 0, signals, white, tmp_path, ranks.world(rank))

    threads = [threading.Thread(target=work, args=(r,)) for r in range(size)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    alone = checkpoint.newest(made[0] / "checkpoints")
    assert alone is not None
    for one in learned:
        assert one is not None
        for name, value in one.state().items():
            assert torch.equal(value, alone[0][name]), name


def test_a_batch_that_ranks_cannot_share_is_refused(digits, tmp_path):
    world = Ranks(3).world(0)
    with pytest.raises(ConfigError, match="batch: 256 does not divide over 3 workers"):
        codes.run(SHORT, 0, {"shards": digits}, tmp_path, world)


@pytest.mark.parametrize(("batch", "steps", "said"), [(255, 30, "lista_batch: 256"), (255, 0, None)])
def test_so_is_one_of_lista(digits, tmp_path, batch, steps, said, monkeypatch):
    """By three: 255 divides, 256 does not, and would have lost a signal a step without a word."""
    settings = SHORT.model_copy(update={"batch": batch, "lista_steps": steps})
    monkeypatch.setattr(codes, "signals", lambda *_: 1 / 0)
    three: Any = Ranks(3).world(0)
    three.device = torch.device("cpu")
    with pytest.raises(ConfigError if said else ZeroDivisionError, match=said):
        codes.run(settings, 0, {"shards": digits}, tmp_path, three)


def test_where_it_ran_is_not_in_the_encoder(made, digits, world, tmp_path):
    """The same bytes from a worker of Ray Train as from here."""
    away = SHORT.model_copy(update={"place": Place(on="workers", workers=2, memory_gb=1.0)})
    run(digits, world, tmp_path, away)
    for name in (models.SPEC, models.WEIGHTS):
        assert (tmp_path / name).read_bytes() == (made[0] / name).read_bytes()


def test_an_encoder_that_is_broken_is_not_coded(digits, world, tmp_path):
    net, image = CNN(width=8, depth=2), Shards.open(digits).image(None)
    trunk = trunks.build(net, image)
    with torch.no_grad():
        next(trunk.parameters()).fill_(torch.nan)
    spec = {"net": net.model_dump(mode="json"), "image": encoders.describe(image)}
    encoders.save(tmp_path / "moco", trunk, spec)
    settings = SHORT.model_copy(update={"encoder": "moco"})
    with pytest.raises(DataError, match="moco: its features are not all finite"):
        run(digits, world, tmp_path / "out", settings, moco=tmp_path / "moco")


def test_patches_are_each_patch_once_in_an_order_of_the_seed(digits):
    shards = Shards.open(digits, "test")
    all_images = torch.nn.functional.pad(images(shards, np.arange(shards.n), 8), (1, 1, 1, 1))
    stream = Patches(shards, 8, 4, 1, seed=3)
    assert stream.n == shards.n * 49
    index = np.arange(2 * stream.n)
    twice = stream.take(index)
    every = torch.nn.functional.unfold(all_images.float(), 4).transpose(1, 2).reshape(-1, 1, 4, 4).byte()

    def ordered(x):
        return torch.unique(x.flatten(1), dim=0, return_counts=True)

    for part in twice.split(stream.n):
        for got, expected in zip(ordered(part), ordered(every), strict=True):
            assert torch.equal(got, expected)
    assert not torch.equal(twice[: stream.n], twice[stream.n :])
    some = np.array([5, stream.n + 2, 5, 7])
    assert torch.equal(stream.take(some), twice[some])
    assert not torch.equal(Patches(shards, 8, 4, 1, seed=4).take(index[:100]), twice[:100])


def test_sets_too_large_to_hold_give_the_same_patches(digits):
    shards = Shards.open(digits, "test")
    held = Patches(shards, 8, 5, 2, seed=0)
    read = Patches(shards, 8, 5, 2, seed=0, memory=0)
    assert held.images.resident and not read.images.resident
    assert torch.equal(held.take(np.arange(300)), read.take(np.arange(300)))


@pytest.mark.parametrize("kind", ["lasso", "lista"])
def test_an_encoder_comes_back_as_it_was_written(digits, world, tmp_path, kind):
    settings = SHORT.model_copy(update={"features": kind, "signals": 1024, "atoms": 16})
    run(digits, world, tmp_path, settings)
    encoder = encoders.load(tmp_path)
    pictures = images(Shards.open(digits, "test"), np.arange(6), 8)
    coder = encoder.module.coder
    raw = features.patches(pictures.float() / 255, 5, 2, 10.0)
    y, norm = features.unit((raw - coder.mean) @ coder.zca)  # type: ignore[operator]
    if kind == "lasso":
        z = solvers.fista(y.double(), coder.dictionary.double(), 0.15, 1e-9).z.float()  # type: ignore[operator]
    else:
        z = coder.lista(y)  # type: ignore[operator]
    maps = (z * norm).view(6, 8, 8, 16)
    expected = torch.stack([maps.clamp_min(0), (-maps).clamp_min(0)], 1).view(6, 2, 2, 4, 2, 4, 16).sum((3, 5))
    got, expected = encoder(pictures), expected.permute(0, 1, 4, 2, 3).flatten(1)
    near = 0.02 * float(expected.max()) if kind == "lasso" else 1e-3  # lasso: solved to a gap of 1e-4 alone
    torch.testing.assert_close(got, expected, atol=near, rtol=1e-4)


def test_features_of_another_encoder_are_coded(made, digits, world, tmp_path):
    settings = SHORT.model_copy(update={"encoder": "first", "signals": 1536, "atoms": 32, "lista_steps": 0})
    metrics = run(digits, world, tmp_path, settings, first=made[0])
    assert metrics["gap"] <= 1e-4
    inner, encoder = encoders.load(made[0]), encoders.load(tmp_path)
    pictures = images(Shards.open(digits, "test"), np.arange(10), 8)
    got = encoder(pictures)
    assert got.shape == (10, 64)
    torch.testing.assert_close(got, features.split(encoder.module.coder(inner(pictures))))  # type: ignore[operator]


def test_another_seed_is_another_dictionary(made, digits, world, tmp_path):
    signals, _ = codes.signals(SHORT, 1, {"shards": digits}, world.device)
    white = features.whitening(signals.take(np.arange(4096)), SHORT.whitening)
    other = codes.learn(SHORT, 1, signals, white, tmp_path, world)
    assert isinstance(other, dictionary.Dictionary)
    assert not torch.allclose(other.atoms.float(), encoders.load(made[0]).module.coder.dictionary)  # type: ignore


def test_a_dictionary_lies_in_memory_as_its_checkpoint_gives_it_back():
    """Sums of floats depend on the order of memory: another layout after a restart is another last digit."""
    draw = torch.Generator().manual_seed(0)
    y, z = torch.randn(64, 9, generator=draw), torch.randn(64, 12, generator=draw)
    now = dictionary.begin(y, 12, 0)
    for _ in range(2 * dictionary.WINDOW):
        dictionary.update(now, y, z * (torch.arange(12) < 8))
    assert int(now.replaced) > 0
    assert all(t.is_contiguous() for t in now.state().values())
