"""What is monitored: collapses that were put in are named within 200 steps, healthy runs are left alone."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from pipeline import objectives
from pipeline.board import Board
from pipeline.errors import NoProgressError
from pipeline.objectives import energies
from pipeline.objectives.base import PATIENCE_STEPS, Objective
from pipeline.objectives.contrastive import ranking
from pipeline.objectives.joint_embeddings import pair_statistics
from pipeline.objectives.moco import MoCo
from pipeline.settings import objectives as chosen
from pipeline.settings.nets import CNN, Norm
from pipeline.settings.stages import OnlineEvaluation, Pretrain
from pipeline.settings.training import SGD, Adam, Training
from pipeline.stages import pretrain
from pipeline.training import checkpoint, monitor
from tests.cases import CONTRASTIVE, batch, make, random, setup, warm

HEAD = chosen.Head(hidden=64, dim=16)
IDS = [3, 1, 12, 25, 9, 30, 17, 6]
HEALTHY = {
    "moco": chosen.MoCo(queue=256, momentum=0.99, head=HEAD),
    "moco_symmetric": chosen.MoCo(queue=256, momentum=0.99, temperature=0.1, symmetric=True, head=HEAD),
    "moco_v3": chosen.MoCoV3(
        temperature=0.2, head=chosen.Head(hidden=64, dim=16, norm="all"), predictor=chosen.Head(hidden=64, dim=16)
    ),
    "simclr": chosen.SimCLR(temperature=0.5, head=HEAD),
    "pirl": chosen.PIRL(loss="infonce", temperature=0.2, negatives=0, head=HEAD),
}
STEPS = 200


class Attracted(MoCo):
    """No negatives, no predictor, a key encoder that is the query encoder: nothing keeps the embeddings apart."""

    def score(self, embedded, batch):
        step = super().score(embedded, batch)
        return replace(step, loss=step.low.mean(), high=step.low.new_empty(len(step.low), 0))


class OneLine(MoCo):
    """Embeddings in 64 dimensions that fill little more than one direction."""

    def embed(self, batch):
        apart = [energies.unit(rows - rows.mean(0)) for rows in super().embed(batch)]
        return tuple(energies.unit(torch.cat([rows[..., :1].sign(), 0.2 * rows[..., 1:]], -1)) for rows in apart)


class Noise(MoCo):
    """Embeddings about one point, spread enough to pass for some, by what no image says."""

    def embed(self, batch):
        about = 0.35 * torch.stack([batch.normal(f"{view}", 1, 64) for view in "ab"])
        return tuple(
            energies.unit(1 + noise + 1e-3 * rows) for rows, noise in zip(super().embed(batch), about, strict=True)
        )


def run(digits, out, world, objective, **changes):
    """A training of 200 steps on digits -> its rows of metrics.jsonl."""
    common = {
        "data": "shards", "batch": 64, "steps": STEPS, "net": CNN(width=8), "views": {"kind": "characters"},
        "optimiser": Adam(lr=2e-3), "snapshots": 0, "save_steps": 50, "objective": objective, "collapse": "stop",
    }  # fmt: skip
    out.mkdir(exist_ok=True)
    pretrain.run(Pretrain(**{**common, **changes}), changes.pop("seed", 0), {"shards": digits}, out, world)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def flagged(digits, out, world, objective, words: str, **changes) -> str:
    with pytest.raises(NoProgressError, match=words) as told:
        run(digits, out, world, objective, **changes)
    step = int(str(told.value).split("at step ")[1].split(":")[0])
    assert step <= STEPS and "last good checkpoint is kept" in str(told.value)
    assert checkpoint.steps(out / "checkpoints")
    return str(told.value)


def test_no_negatives_and_no_predictor(digits, tmp_path, world, monkeypatch):
    monkeypatch.setitem(objectives.OBJECTIVES, "moco", Attracted)
    flagged(digits, tmp_path / "a", world, chosen.MoCo(queue=64, momentum=0.0, head=HEAD), "one point")


def test_temperature_without_end(digits, tmp_path, world):
    flagged(digits, tmp_path / "a", world, chosen.MoCo(queue=256, temperature=1e4, head=HEAD), "not pushed above")


@pytest.mark.parametrize(("made", "words"), [(OneLine, "fill 1.[0-9]* directions of 64"), (Noise, "as far as other")])
def test_collapses_that_are_neither_a_point_nor_flat(made, words, digits, tmp_path, world, monkeypatch):
    """What the deviation alone, and the energies alone, take for healthy."""
    monkeypatch.setitem(objectives.OBJECTIVES, "moco", made)
    wide = chosen.MoCo(queue=64, momentum=0.9, temperature=0.02, head=chosen.Head(hidden=64, dim=64))
    told = flagged(digits, tmp_path / "a", world, wide, words, steps=300, net=CNN(width=4, depth=1))
    assert "one point" not in told
    if made is OneLine:
        assert "not pushed" not in told


def test_batch_norm_that_tells_batches(world):
    """Each batch has a point of its own, as batch norm can give it one, to which an image adds noise alone: a key is
    told from all of earlier batches, and no image from another of its own, as distances inside of a batch show."""
    objective = MoCo(chosen.MoCo(queue=64, head=chosen.Head(dim=64)), setup("moco", world)).double()
    reads = []
    for step in range(12):
        rows = [random(64, seed=f"batch {step}") + 0.5 * random(8, 1, 64, seed=f"{view} {step}") for view in "ab"]
        b = batch(objective, IDS, step)
        result = objective.score((energies.unit(rows[0]), energies.unit(rows[1])), b)
        reads.append({"energy/gap": 5.0, **{k: float(v) for k, v in objective.diagnostics(result, b).items()}})
        objective.commit({**result.pending, "ids": torch.tensor(IDS) + 100 * (step + 1)}, step)
    assert reads[-1]["learn/accuracy"] == 1
    assert set(objective.collapse_signs(reads[-1])) == {"batches", "far"}
    told, *_ = noted(objective, reads, collapse="stop")
    assert "at step 50: batch norm tells batches, not images (accuracy 1" in told  # before the other has stayed
    assert set(objective.collapse_signs({**reads[-1], "learn/accuracy": 0.1})) == {"far"}
    assert objective.collapse_signs({**reads[-1], "collapse/alignment_ratio": 0.3}) == {}


def test_a_training_that_is_shorter_than_a_sign_has_to_stay(world, capsys):
    """It is said at the end, whatever was to be done in between."""
    objective, good, bad = make("ae", world), {"energy/volume": 2.5}, {"energy/volume": 1.1}
    for do in ("say", "stop"):
        assert noted(objective, [good] * 9 + [bad] * 11, total=200, collapse=do) == []
        said = capsys.readouterr().out
        assert "ends with a sign of collapse, there since step 100: the codes fill 1.1 directions of 4" in said
    noted(objective, [bad] * 19 + [good], total=200)
    noted(objective, [bad] * 20, total=200, collapse="ignore")
    noted(objective, [bad] * 4, total=40)  # ends before anything is monitored
    assert capsys.readouterr().out == ""


def noted(objective, reads, total: int = 10_000, **settings) -> list[str]:
    """What an alarm says of these readings, ten steps apart."""
    alarm = monitor.CollapseAlarm(objective, Training(**settings), 10, total)
    said: list[str] = []
    for i, read in enumerate(reads):
        try:
            alarm.note(10 * (i + 1), read)
        except NoProgressError as error:
            said.append(str(error))
    return said


@pytest.mark.parametrize(
    ("name", "healthy", "bad", "words"),
    [
        ("ae", {"energy/volume": 2.5}, {"energy/volume": 1.1}, "the codes fill 1.1 directions of 4"),
        ("dae", {"energy/volume": 1.6}, {"energy/volume": 0.0}, "the codes fill 0 directions of 4"),
        ("vae", {"vae/kl": 0.3}, {"vae/kl": 0.01}, "says nothing of the image"),
        ("lista_energy", {"codes/nonzero": 1.0}, {"codes/nonzero": 0.0}, "all codes are zero"),
    ],
)
def test_objectives_without_rows_have_signs_of_their_own(name, healthy, bad, words, world):
    objective = make(name, world)
    assert noted(objective, [healthy] * 60, collapse="stop") == []
    assert noted(objective, [bad, healthy] * 30, collapse="stop") == []  # never for long
    assert noted(objective, [bad] * 60, collapse="ignore") == []
    (first, *_) = noted(objective, [healthy] * 10 + [bad] * 60, collapse="stop")
    assert words in first and "at step 110" in first


@pytest.mark.parametrize(("beta", "silent"), [(60.0, True), (1.0, False)])
def test_a_posterior_that_collapses(beta, silent, digits, tmp_path, world, capsys):
    """A KL that costs sixty times too much; at the bound's own price it is small at first, and grows."""
    settings = Pretrain(data="shards", objective=chosen.VAE(beta=beta), steps=280, snapshots=0, save_steps=280)
    pretrain.run(settings, 0, {"shards": digits}, tmp_path, world)
    assert ("VAE: collapsed at step 50: the latent says nothing" in capsys.readouterr().out) == silent


def test_an_objective_without_a_sign_says_so(world):
    class Plain(Objective):
        pass

    (line,) = monitor.caveats(Plain(), Training(), world)
    assert "Plain has no sign by which a collapse is seen" in line
    assert not list(monitor.caveats(Plain(), Training(collapse="ignore"), world))
    for made in set(objectives.OBJECTIVES.values()):
        assert made.collapse_signs is not Objective.collapse_signs


def test_directions_and_the_ratio_by_hand(world):
    """Participation ratio of the eigenvalues; squared distances to the own positive, over those to all others'."""
    for spread in (1.0, 1e-4):
        rows, others = (torch.nn.functional.normalize(1 + spread * random(9, 5, seed=s), dim=1) for s in "ab")
        read = pair_statistics(torch.stack([rows, others], 1))
        values = torch.linalg.eigvalsh(torch.cov(rows.T))
        filled = float(values.sum() ** 2 / (values**2).sum())
        assert float(read["collapse/directions"]) == pytest.approx(filled, rel=1e-6)
        apart = [[float((a - b).square().sum()) for b in others] for a in rows]
        own = sum(apart[i][i] for i in range(9)) / 9
        far = sum(apart[i][j] for i in range(9) for j in range(9) if i != j) / 72
        assert float(read["collapse/alignment"]) == pytest.approx(own, rel=1e-6)
        assert float(read["collapse/alignment_ratio"]) == pytest.approx(own / far, rel=1e-6)


def test_batch_norm_that_tells(digits, tmp_path, world):
    net = CNN(width=16, norm=Norm(kind="split", splits=32))
    flagged(digits, tmp_path / "a", world, HEALTHY["moco"].model_copy(update={"temperature": 0.07}), "companions",
            net=net)  # fmt: skip


def test_shuffled_batch_norm_does_not_tell(digits, tmp_path, world):
    net = CNN(width=16, norm=Norm(kind="shuffle", splits=32))
    objective = HEALTHY["moco"].model_copy(update={"temperature": 0.07})
    rows = run(digits, tmp_path / "a", world, objective, net=net)
    seen = [row["collapse/batchnorm_leakage"] for row in rows if "collapse/batchnorm_leakage" in row]
    assert len(seen) == STEPS // PATIENCE_STEPS and max(map(abs, seen)) < 0.05


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_runs_are_left_alone(name, seed, digits, tmp_path, world):
    """Twenty of them, five by default."""
    optimiser = (SGD(lr=0.1, reference_batch=0), Adam(lr=1e-3), Adam(lr=5e-4), Adam(lr=2e-3))[seed]
    rows = run(digits, tmp_path / "a", world, HEALTHY[name], optimiser=optimiser, seed=seed)
    assert rows[-1]["step"] == STEPS
    evaluated = [row for row in rows if "collapse/rankme" in row]
    assert [row["step"] for row in evaluated] == [50, 100, 150, 200]
    assert all(1 <= row["collapse/rankme"] <= 32 and 0 <= row["accuracy/knn_online"] <= 1 for row in evaluated)


def test_ranks_that_have_come_apart_are_named():
    class Apart:
        rank, size = 0, 2

        def gather(self, x):
            other = x.clone()
            other[0, 2] += 1
            return torch.cat([x, other])

    objective = torch.nn.Linear(3, 2)
    objective.replicated = lambda: {"weight": objective.weight, "bias": objective.bias, "queue": torch.arange(4)}
    with pytest.raises(NoProgressError, match=r"queue .* of rank 1 .* at step 12"):
        monitor.compare_ranks(objective, 12, Apart())


@pytest.mark.parametrize("x", [torch.arange(5), random(3, 3), random(7).float(), torch.tensor(True), random(2, 0)])
def test_a_checksum_sees_every_bit_and_place(x):
    whole = monitor.checksum(x)
    assert whole.dtype == torch.int64 and whole == monitor.checksum(x.clone())
    if x.numel() > 1:
        assert whole != monitor.checksum(x.flip(0))
        other = x.clone()
        other.view(-1)[1] = torch.nextafter(x.view(-1)[1], x.new_tensor(9.0)) if x.is_floating_point() else 77
        assert whole != monitor.checksum(other)


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_what_is_read_of_a_step(name, world):
    """auroc, effective negatives and the positive's share, as loops over the step's energies."""
    objective = warm(make(name, world))
    b = batch(objective, IDS, 3)
    step = objective(b)
    read = objective.diagnostics(step, b)
    auroc: list[float] = []
    effective, share = [], []
    for low, high in zip(step.low.tolist(), step.high.tolist(), strict=True):
        seen = torch.tensor([e for e in high if e != float("inf")], dtype=torch.float64)
        auroc.append(float((seen > low).double().mean() + (seen == low).double().mean() / 2) if len(seen) else 0.5)
        effective.append(float(1 / torch.softmax(-seen, 0).square().sum()))
        share.append(float(torch.softmax(-torch.cat([torch.tensor([low], dtype=torch.float64), seen]), 0)[0]))
    assert float(read["learn/auroc"]) == pytest.approx(sum(auroc) / len(auroc), rel=1e-12)
    assert float(read["learn/effective_negatives"]) == pytest.approx(sum(effective) / len(effective), rel=1e-9)
    assert float(read["learn/positive_share"]) == pytest.approx(sum(share) / len(share), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [n for n in CONTRASTIVE if not n.startswith("pirl")])
def test_a_collapsed_encoder_is_as_good_as_chance(name, dtype, world):
    """All embeddings one point: every energy is the same but for rounding, whichever product it came from. auroc 1/2;
    of the 1 + K that share the first place the positive is one."""
    objective = warm(make(name, world, dtype=dtype), dtype=dtype)
    point = torch.nn.functional.normalize(random(6, seed="point"), dim=0).to(dtype)
    queue: Any = getattr(objective, "queue", None)
    if queue is not None:
        queue.keys.copy_(point.expand_as(queue.keys))
    embedded = objective.embed(batch(objective, IDS, 3, dtype))
    rows = tuple(point.expand_as(rows) * (1 + torch.finfo(dtype).eps * random(*rows.shape)) for rows in embedded)
    step = objective.score(tuple(r.to(dtype) for r in rows), batch(objective, IDS, 3, dtype))
    seen = torch.isfinite(step.high)
    assert step.low.dtype == dtype and len(step.high[seen].unique()) > 1  # rounding has parted them
    read = ranking(step.low, step.high, 6)
    assert float(read["learn/auroc"]) == 0.5
    chance = sum(1 / (1 + int(row.sum())) for row in seen) / len(seen)
    assert float(read["learn/accuracy"]) == pytest.approx(chance, rel=1e-6)


def test_ties_count_half_and_rounding_is_a_tie():
    """Low 0, and of four negatives one below, one above, one the same and one that is none."""
    low, high = torch.tensor([-1.0, -1.0]), torch.tensor([[-2.0, 1.0, -1.0, torch.inf], [0.5, 1.0, -1 - 1e-7, 2.0]])
    read = ranking(low, high, 4)
    assert float(read["learn/auroc"]) == pytest.approx(((1 + 0.5) / 3 + 3.5 / 4) / 2)
    assert float(read["learn/accuracy"]) == pytest.approx((0 + 1 / 2) / 2)


def test_nothing_is_read_of_negatives_that_are_not_there():
    assert ranking(-torch.ones(4).double(), torch.empty(4, 0), 3) == {}


@pytest.mark.parametrize("which", ["loss", "gradient"])
def test_the_first_step_that_was_not_finite_is_named(which):
    finite = monitor.FiniteCheck("MoCo")
    for step in range(10, 20):
        bad = torch.tensor(float("nan") if step in (14, 16) else 1.0)
        finite.note(step, *((bad, torch.ones(())) if which == "loss" else (torch.ones(()), bad)))
    with pytest.raises(NoProgressError, match=f"MoCo: the {which} is not finite at step 14;"):
        finite.check()
    finite.check()  # told once


def test_an_evaluation_says_no_more_than_it_can_read(digits, capsys, monkeypatch):
    from pipeline.data import images
    from pipeline.data.shards import Shards
    from pipeline.errors import DataError
    from pipeline.evaluation import online
    from pipeline.nets import trunks

    shards = Shards.open(digits, "train")
    image = shards.image(None)
    trunk = trunks.build(CNN(width=8), image)
    assert online.evaluation(OnlineEvaluation(), shards, image, 1438, 99, 0) is None
    read = online.evaluation(OnlineEvaluation(), shards, image, 1000, 300, 0)
    assert read is not None
    found = read(trunk)
    assert found == read(trunk) and found["learn/online_images"] == 300 and trunk.training
    monkeypatch.setattr(online, "MEMORY", 0)
    assert online.evaluation(OnlineEvaluation(), shards, image, 1000, 300, 0)(trunk) == found

    def broken(*_):
        raise DataError("shard 0: torn")

    monkeypatch.setattr(images, "images", broken)
    assert online.evaluation(OnlineEvaluation(), shards, image, 1000, 300, 0)(trunk) == {}
    assert "not evaluated while it trains: shard 0: torn" in capsys.readouterr().out


def test_what_restarts_cost_adds_up(tmp_path):
    """Checkpoints at steps 3 and 4; ten images a second in batches of 20, so that a step takes two seconds."""
    told = []
    for start, end in ((0, 5), (3, 6), (4, 4), (4, 8)):
        board = Board(tmp_path, start)
        found = monitor.restart_cost(board, start, 20)
        told.append(tuple(found.values()))
        if found:
            board.timings(start, found)
        for step in range(start + 1, end + 1):
            board.timings(step, {"speed/images_per_s": 10.0})
        board.close()
    assert told == [(), (1, 2, 4), (2, 4, 8), (3, 4, 8)]
