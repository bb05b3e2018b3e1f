"""What peers were seen to get wrong, row by row of the table in docs/defects.md, on our code."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from pipeline.data.order import BatchSampler
from pipeline.errors import ConfigError
from pipeline.objectives.memory import Queue, unit_rows
from pipeline.settings.nets import Norm
from pipeline.settings.objectives import Jigsaw
from pipeline.views import jigsaw
from tests.cases import CASES, JOINT, batch, make, random, warm
from tests.rank_worker import train
from tests.test_ranks import hold, start

ROOT = Path(__file__).parent.parent
IDS = [3, 1, 12, 25, 9, 30, 17, 6]
RUNS = ("moco", "simclr")
REGULARISED = ("vicreg", "barlow_twins", "lejepa")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return start(tmp_path_factory.mktemp("two"), 2, *RUNS, *REGULARISED)


def test_01_memory_is_in_the_checkpoint(world):
    for name, memory in (("moco", "queue"), ("pirl", "bank")):
        objective = warm(make(name, world))
        saved = objective.state_dict()
        parts = dict(getattr(objective, memory).named_buffers())
        assert parts and all(torch.equal(saved[f"{memory}.{k}"], v) for k, v in parts.items())


@pytest.mark.cluster
def test_02_every_ranks_keys_stay(two, world):
    one, others = train("moco", world)["state"], [rank["moco"]["state"] for rank in two]
    for state in others:
        assert torch.equal(state["queue.ids"], one["queue.ids"])
        torch.testing.assert_close(state["queue.keys"], one["queue.keys"], rtol=1e-10, atol=1e-12)
    assert world.accelerator.ddp_handler.broadcast_buffers is False


def test_03_symmetric_halves_meet_the_same_queue(world):
    objective = warm(make("moco_symmetric", world, norm=Norm(kind="none")))
    b = batch(objective, IDS, 3)
    q, k = objective.embed(b)
    losses = [objective.score((q[:, [v]], k[:, [v]]), b).loss for v in (0, 1)]
    both = objective.score((q, k), b)
    torch.testing.assert_close(both.loss, torch.stack(losses).mean(), rtol=1e-12, atol=0)
    turned = objective.score((q.flip(1), k.flip(1)), b)
    torch.testing.assert_close(turned.loss, both.loss, rtol=1e-12, atol=0)


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/**/*.yaml")), ids=lambda p: p.stem)
def test_04_published_configs_are_built(path, tmp_path):
    from pipeline import config, estimate

    cfg = config.load(str(path), [] if path.stem == "quickstart" else [f"shards.source=folder:{tmp_path}"])
    for stage in cfg.stages.values():
        if stage.kind == "pretrain":
            data = estimate.Packed(1_000_000, 3, 32 if "cifar" in path.stem else 28)
            assert estimate.build(stage, data, cfg.seed) is not None


def test_05_the_newest_keys_stay_over_the_wrap():
    queue, made = Queue(1000, 1, 0), 0
    for step in range(9):
        numbers = torch.arange(made, made := made + 256)
        queue.write(numbers[:, None].float(), numbers, step)
    order = (queue.next + torch.arange(1000)) % 1000
    assert queue.ids[order].tolist() == list(range(made - 1000, made))
    queue.write(torch.arange(1500)[:, None].float(), torch.arange(1500), 9)
    assert queue.ids[(queue.next + torch.arange(1000)) % 1000].tolist() == list(range(500, 1500))


@pytest.mark.parametrize("name", ["moco", "moco_sum", "moco_v3"])
def test_06_the_key_encoder_starts_as_a_copy(name, world):
    objective = make(name, world)
    for slow, fast in ((objective.key_trunk, objective.trunk), (objective.key_head, objective.head)):
        assert all(torch.equal(v, fast.state_dict()[k]) for k, v in slow.state_dict().items())
        assert not any(p.requires_grad for p in slow.parameters())


def test_07_patches_have_all_their_jitter_and_come_from_everywhere():
    cell, patch = Jigsaw().geometry(224)
    assert (cell, patch) == (85, 64)
    at = jigsaw.corners(0, 0, np.arange(4000), 3, cell, patch)
    slack = at - np.stack(np.divmod(np.arange(9), 3), 1) * cell
    for place in range(9):
        for axis in (0, 1):
            assert set(slack[:, place, axis].tolist()) == set(range(22))
    crop = jigsaw.enlarge(torch.zeros(2, 3, 150, 150, dtype=torch.uint8), (0.6, 1.0), 255, 0, 0, np.arange(2))
    assert crop.shape == (2, 3, 255, 255)
    pieces = jigsaw.cut(crop, at[:2], jigsaw.orders(0, 0, np.arange(2), 9), patch)
    assert pieces.shape == (2, 9, 3, 64, 64)


@pytest.mark.parametrize("name", JOINT)
def test_08_energies_are_not_halved_by_autocast(name, world):
    objective = warm(make(name, world, dtype=torch.float32), dtype=torch.float32)
    b = batch(objective, IDS, 3, torch.float32)
    rows = tuple(r.detach().clone().requires_grad_() for r in objective.embed(b))
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = objective.score(rows, b).loss
        found.append((loss, torch.autograd.grad(loss, rows[0])[0]))
    (plain, gradient), (halved, again) = found
    assert torch.equal(plain, halved) and torch.equal(gradient, again) and gradient.abs().max() > 0


def test_09_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ConfigError, match="batch 7 cannot be shared by 2 ranks"):
        BatchSampler(n=100, batch=7, size=2)
    shares = [BatchSampler(n=100, batch=8, rank=r, size=2).at(3)[1][0] for r in range(2)]
    assert len(shares[0]) == len(shares[1]) == 4


def test_10_a_positive_is_no_negative(world):
    """Where every key is its query and the queue is orthogonal to both, the loss is 0, not log 2."""
    objective = make("moco", world)
    objective.queue = Queue(4, 6, 0).double()
    objective.queue.write(torch.eye(6).double()[:4], torch.arange(4), 0)
    objective.settings = CASES["moco"].model_copy(update={"temperature": 0.01})
    q = torch.eye(6).double()[[4, 5]][:, None]
    result = objective.score((q, q), batch(objective, [10, 11], 1))
    assert float(result.loss) < 1e-12 < math.log(2)
    ids = {int(i) for i in result.pending["ids"]}
    assert not ids & set(objective.queue.ids.tolist())  # enqueued by commit, after the loss


@pytest.mark.parametrize("loss", ["nce", "infonce"])
def test_11_pirl_is_held_against_its_own_rows(loss, world):
    """A row for every image: where the encoder gives each its row, and rows are apart, the loss vanishes; where it
    gives another image's, it does not. Both terms meet the row, never each other."""
    objective = make("pirl", world)
    objective.settings = CASES["pirl"].model_copy(update={"loss": loss, "temperature": 0.01, "negatives": 0})
    objective.bank.rows.copy_(normalize(torch.eye(64, 6).double() + 1e-9, dim=1))
    objective.bank.rows[6:] = -objective.bank.rows[5]
    b = batch(objective, [0, 1, 2], 1)
    mine = objective.bank.rows[b.ids][:, None].expand(-1, 2, -1)
    assert float(objective.score((mine,), b).loss) < 1e-9
    swapped = mine.clone()
    swapped[:, 1] = mine.roll(1, 0)[:, 1]  # the image's term is unmoved by the patches'
    half = objective.score((swapped,), b)
    terms = 2 if loss == "nce" else 1  # nce: the positive's share is as small as the wrong row's is large
    assert float(half.loss) == pytest.approx(terms * objective.settings.weight * 100, rel=0.1)
    assert objective.bank.last_step.shape == (64,)


@pytest.mark.cluster
@pytest.mark.parametrize("run", RUNS)
def test_12_13_loss_and_gradient_are_the_global_batchs(run, two, world):
    hold(two[0][run], run, train(run, world))


@pytest.mark.cluster
@pytest.mark.parametrize("run", REGULARISED)
def test_14_15_statistics_are_the_global_batchs(run, two, world):
    """Their losses and their gradients; the halves of a batch by themselves have others."""
    hold(two[0][run], run, train(run, world))
    objective = make(run, world, norm=Norm(kind="none"))
    whole, *halves = (float(objective(batch(objective, ids)).loss.detach()) for ids in (IDS, IDS[:4], IDS[4:]))
    assert abs(whole - sum(halves) / 2) > 1e-3 * whole


def test_16_the_weight_of_sigreg_is_a_share(world):
    def gradient(weight: float):
        objective = make("lejepa", world)
        objective.settings = CASES["lejepa"].model_copy(update={"weight": weight})
        b = batch(objective, IDS)
        (rows,) = (r.detach().requires_grad_() for r in objective.embed(b))
        return torch.autograd.grad(objective.score((rows,), b).loss, rows)[0]

    near, half, normal = (gradient(weight) for weight in (0.0, 0.5, 1.0))
    torch.testing.assert_close(near[:, 0], -near[:, 1])  # views are drawn to their mean, and nothing else happens
    torch.testing.assert_close(half, (near + normal) / 2)


def test_17_sigreg_is_each_views_own(world):
    """An image's views all alike: the statistic is that of one of them, not of a sample twice as large."""
    objective = make("lejepa", world)
    b, view = batch(objective, IDS), random(8, 1, 6)
    once, twice = (objective.sigreg(view.expand(-1, views, -1), b) for views in (1, 2))
    torch.testing.assert_close(once, twice, rtol=1e-12, atol=0)


def test_every_row_of_the_table_has_its_test():
    table = (ROOT / "docs/defects.md").read_text()
    rows = {int(n) for n in re.findall(r"^\| (\d+) \|", table, re.M)}
    named = {int(n) for name in globals() for n in re.findall(r"(?:test_|_)(\d\d)(?=_)", name)}
    assert rows == named == set(range(1, 18))


def test_rows_are_of_length_one():
    """A bank averaged over ranks that began apart would have rows of length 1 / sqrt(ranks)."""
    assert unit_rows(50, 8, "x").norm(dim=1).numpy() == pytest.approx(np.ones(50), rel=1e-6)
    assert random(2, 3).shape == (2, 3)
