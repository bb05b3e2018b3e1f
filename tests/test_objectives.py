"""The contract that every objective keeps, checked on all of them."""

import inspect
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pipeline import objectives
from pipeline.objectives import OBJECTIVES
from pipeline.objectives.base import Batch, Lasso
from pipeline.settings.nets import Norm
from pipeline.settings.stages import Pretrain
from pipeline.settings.training import Adam
from pipeline.training import optim
from pipeline.training.loop import backward
from pipeline.world import World
from tests.cases import CASES, CONTRASTIVE, CROPPED, IMAGE, JOINT, batch, make, setup, warm

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
EVERY = pytest.mark.parametrize("name", CASES)
IDS = [3, 1, 12, 25, 9, 30, 17, 6]


def state(objective) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in objective.state_dict().items()}


def changed(before: dict[str, Tensor], objective) -> set[str]:
    now = objective.state_dict()
    assert set(now) == set(before)
    return {
        k
        for k, v in before.items()
        if not torch.equal(
            v,
            now[k],
        )
        and not (v.isnan() & now[k].isnan()).all()
    }


def gradients(objective) -> dict[str, Tensor]:
    return {k: p.grad for k, p in objective.named_parameters() if p.grad is not None}


@EVERY
def test_forward_is_pure(name, world):
    """The same state and batch give the same answer, and leave nothing behind but batch norm's statistics."""
    objective = warm(make(name, world))
    before, numbers = state(objective), torch.random.get_rng_state()
    first, second = (objective(batch(objective, IDS, 3)) for _ in range(2))
    assert torch.equal(first.loss, second.loss)
    assert torch.equal(first.low, second.low) and torch.equal(first.high, second.high)
    assert all(torch.equal(first.pending[k], second.pending[k]) for k in first.pending)
    assert {k.rsplit(".", 1)[-1] for k in changed(before, objective)} <= set(STATISTICS)
    assert torch.equal(numbers, torch.random.get_rng_state())


@EVERY
def test_commit_changes_what_it_declares(name, world):
    objective = warm(make(name, world))
    result = objective(batch(objective, IDS, 3))
    with torch.no_grad():
        for p in objective.encoder.parameters():
            p.add_(0.01)  # an optimiser's step
    before = state(objective)
    objective.commit(result.pending, 3)
    touched = changed(before, objective)
    assert all(k.startswith(objective.commit_changes) for k in touched)
    assert bool(touched) == bool(objective.commit_changes)
    assert not any(k.endswith(STATISTICS) for k in touched)


@EVERY
def test_saved_and_loaded_it_goes_on_bit_for_bit(name, world):
    objective, other = warm(make(name, world)), make(name, world, seed=1)
    other.load_state_dict(state(objective))
    for step in (3, 4):
        results = [o(batch(o, IDS, step)) for o in (objective, other)]
        assert torch.equal(results[0].loss, results[1].loss)
        for o, r in zip((objective, other), results, strict=True):
            o.commit(r.pending, step)
    assert not changed(state(objective), other)


@EVERY
def test_the_loss_falls_with_low_and_with_rising_high(name, world):
    objective = warm(make(name, world))
    b = batch(objective, IDS, 3)
    result = objective(b)
    if result.high.numel() == 0:
        assert result.high.shape == (len(result.low), 0)
        assert "energy/volume" in result.scalars | objective.diagnostics(result, b)
        (low,) = torch.autograd.grad(result.loss, [result.low], allow_unused=True)
        assert low is None or (low > 0).all()  # None: a loss of the energy's parts, or of the distance to a code
        return
    low, high = torch.autograd.grad(result.loss, [result.low, result.high])
    seen = torch.isfinite(result.high)
    assert (low > 0).all() and (high[seen] < 0).all() and (high[~seen] == 0).all()


@EVERY
@pytest.mark.parametrize("pieces", [2, 4])
def test_accumulation_equals_the_big_batch(name, pieces, world):
    """Without batch norm: the same gradient and pending rows from one batch or several, whatever is coupled."""
    whole, cut = (warm(make(name, world, norm=Norm(kind="none"))) for _ in range(2))
    size = len(IDS) // pieces
    one = backward(whole, whole, [batch(whole, IDS, 3)])
    many = backward(cut, cut, [batch(cut, IDS[i : i + size], 3) for i in range(0, len(IDS), size)])
    torch.testing.assert_close(many.loss, one.loss, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradients(cut), gradients(whole), rtol=1e-9, atol=1e-13)
    for o, r in ((whole, one), (cut, many)):
        o.commit(r.pending, 3)
    for k, v in whole.state_dict().items():
        torch.testing.assert_close(cut.state_dict()[k], v, rtol=1e-12, atol=1e-14, msg=k, equal_nan=True)


@EVERY
def test_it_is_built_without_numbers(name):
    """As --dry-run and the memory's estimate build it: on the meta device, where a constructor that asks for a number
    (float(x), .item(), a comparison) ends in a traceback; and, but for the last energies, embeds there."""
    lasso = Lasso(torch.empty(10, 24, device="meta"), 0.2)
    with torch.device("meta"):
        objective = objectives.build(CASES[name], replace(setup(name, World.single(device="meta")), lasso=lasso))
    assert all(t.is_meta for t in (*objective.parameters(), *objective.buffers()))
    objective.cropped = name in CROPPED  # type: ignore[assignment]
    real = batch(objective, IDS, dtype=torch.float32)
    rows = objective.embed(Batch(tuple(view.to("meta") for view in real.views), real.ids))
    assert all(len(row) == len(IDS) for row in rows)


@EVERY
def test_any_batch_size(name, world):
    objective = make(name, world)
    for step, size in enumerate((7, 2, 5, 30, 3)):
        result = objective(batch(objective, list(range(step, step + size)), step))
        assert len(result.low) and len(result.low) % size == 0
        assert torch.isfinite(result.loss)
        objective.commit(result.pending, step)


@EVERY
def test_autocast_leaves_energies_and_loss_whole(name, world):
    objective = warm(make(name, world, dtype=torch.float32), dtype=torch.float32)
    exact = objective(batch(objective, IDS, 3, torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        result = objective(batch(objective, IDS, 3, torch.float32))
    result.loss.backward()
    assert result.loss.dtype == result.low.dtype == result.high.dtype == torch.float32
    assert all(v.dtype != torch.bfloat16 for v in result.pending.values())
    assert torch.isfinite(result.loss)
    assert all(torch.isfinite(g).all() for g in gradients(objective).values())
    torch.testing.assert_close(result.loss, exact.loss, rtol=0.05, atol=0.05)


@EVERY
def test_double_precision_throughout(name, world):
    objective = make(name, world)
    result = objective(batch(objective, IDS))
    assert result.loss.dtype == result.low.dtype == result.high.dtype == torch.float64
    assert all(v.dtype in (torch.float64, torch.int64, torch.uint8) for v in objective.state_dict().values())


@EVERY
def test_learns_64_images_by_heart(name, world):
    objective = make(name, world, dtype=torch.float32)
    given = batch(objective, list(range(64)), dtype=torch.float32)
    settings = Pretrain(data="x", optimiser=Adam(lr=3e-3))
    optimiser, losses = optim.build(objective, settings), []
    for step in range(100):
        result = objective(given)
        result.loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        objective.commit(result.pending, step)
        losses.append(float(result.loss.detach()))
    assert sum(losses[-3:]) < 0.97 * sum(losses[2:5])  # once a queue has keys


@EVERY
def test_step_is_made_of_detached_scalars_and_whole_pending(name, world):
    objective = warm(make(name, world))
    b = batch(objective, IDS, 3)
    result = objective(b)
    assert result.loss.shape == () and result.loss.requires_grad
    for tag, value in (result.scalars | objective.diagnostics(result, b)).items():
        assert re.fullmatch(r"(learn|ae|vae|latent|energy|codes|density|collapse)/[a-z_]+", tag)
        assert value.shape == () and not value.requires_grad and torch.isfinite(value), tag
        assert value.dtype == torch.float64 or tag in ("learn/queue_age", "vae/active_units"), tag
    assert not any(v.requires_grad for v in result.pending.values())
    assert all(len(v) == len(IDS) and not v.requires_grad for v in result.per_sample.values())


@pytest.mark.parametrize("name", JOINT)
def test_positive_pairs_are_unit_rows(name, world):
    """From which alignment, spread and directions are taken, for all alike."""
    objective = warm(make(name, world))
    b = batch(objective, IDS, 3)
    result = objective(b)
    pair = result.per_sample["pair"]
    assert pair.shape == (len(IDS), 2, objective.dim)
    torch.testing.assert_close(pair.norm(dim=2), torch.ones(len(IDS), 2).double(), rtol=1e-9, atol=0)
    torch.testing.assert_close(objective.pair(objective.embed(b)).detach(), pair, rtol=1e-9, atol=1e-12)
    scalars = result.scalars | objective.diagnostics(result, b)
    ranked = {"learn/accuracy", "learn/auroc"} if name in CONTRASTIVE else set()
    assert {"collapse/alignment", "collapse/uniformity", "collapse/std"} | ranked <= set(scalars)
    memory = objective.commit_changes
    assert ("learn/queue_age" in scalars) == bool({"queue.", "bank."} & set(memory))
    assert ("learn/key_distance" in scalars) == ("key_trunk." in memory)


@EVERY
def test_what_is_not_finite_shows_in_the_loss(name, world):
    objective = warm(make(name, world))
    good = batch(objective, IDS, 3)
    for view in range(1 if objective.settings.inputs.signals else len(good.views)):
        views = [v.clone() for v in good.views]
        views[view][2].flatten()[0] = float("nan")
        bad = replace(good, views=tuple(views))
        assert not torch.isfinite(objective(bad).loss)


@EVERY
def test_encoder_maps_images_to_rows_of_its_width(name, world):
    objective = make(name, world)
    encoder = objective.encoder.eval()
    images = torch.rand(5, IMAGE.channels, IMAGE.side, IMAGE.side, dtype=torch.float64)
    rows = batch(objective, IDS[:5]).views[0] if objective.settings.inputs.signals else images
    assert encoder(rows).shape == (5, encoder.features)
    assert all(p.requires_grad for p in encoder.parameters())


@EVERY
def test_first_weights_depend_on_the_seed_alone(name, world):
    torch.manual_seed(1)
    first = state(make(name, world, seed=5))
    torch.manual_seed(2)
    assert not changed(first, make(name, world, seed=5))
    # One that predicts codes starts at the lasso that it was given, whatever the seed.
    assert bool(changed(first, make(name, world, seed=6))) == (not CASES[name].inputs.signals)


@pytest.mark.parametrize("name", [n for n in CONTRASTIVE if getattr(CASES[n], "mask_own", True)])
def test_an_image_is_never_its_own_negative(name, world):
    objective, met = make(name, world), False
    for step in range(4):
        ids = [0, 4, 4, 7, 0, 11]  # some twice in one batch, all in memory from the second step on
        b = batch(objective, ids, step)
        result = objective(b)
        negatives = objective.negative_ids(b)
        assert negatives.shape == (result.high.shape[1],)
        own = b.ids.repeat_interleave(len(result.low) // len(ids))[:, None] == negatives
        assert torch.isinf(result.high[own]).all()
        met |= bool(own.any())
        objective.commit(result.pending, step)
    assert met


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_the_page_names_its_source(kind):
    page = inspect.getdoc(OBJECTIVES[kind]) + (inspect.getdoc(inspect.getmodule(OBJECTIVES[kind])) or "")
    assert re.search(r"arXiv \d{4}\.\d{4,5}|(19|20)\d\d", page), "names no paper"
    assert "eq." in page or re.search(r"lgorithm \d: L =", page) or "E(" in page or "E =" in page, "gives no equation"


def test_the_suite_holds_every_objective():
    assert {s.kind for s in CASES.values()} == set(OBJECTIVES)
