"""The contract that every objective keeps, checked on all of them."""

import inspect
import re

import pytest
import torch

from pipeline.objectives import OBJECTIVES
from pipeline.testing import contract
from pipeline.testing.cases import IDS
from tests.cases import CASES, CONTRASTIVE, IMAGE, JOINT, batch, case, make, warm

EVERY = pytest.mark.parametrize("name", CASES)


@EVERY
def test_forward_is_pure(name, world):
    contract.forward_is_pure(case(name, world))


@EVERY
def test_commit_changes_what_it_declares(name, world):
    contract.commit_changes_what_it_declares(case(name, world))


@EVERY
def test_saved_and_loaded_it_goes_on_bit_for_bit(name, world):
    contract.loaded_it_goes_on_bit_for_bit(case(name, world))


@EVERY
def test_the_loss_falls_with_low_and_with_rising_high(name, world):
    contract.loss_falls_with_low_and_with_rising_high(case(name, world))


@EVERY
def test_accumulation_equals_the_big_batch(name, world):
    contract.accumulation_equals_the_big_batch(case(name, world))


@EVERY
def test_it_is_built_without_numbers(name, world):
    contract.it_is_built_without_numbers(case(name, world))


@EVERY
def test_any_batch_size(name, world):
    contract.any_batch_size(case(name, world))


@EVERY
def test_autocast_leaves_energies_and_loss_whole(name, world):
    contract.autocast_leaves_energies_and_loss_whole(case(name, world))


@EVERY
def test_double_precision_throughout(name, world):
    contract.double_precision_throughout(case(name, world))


@EVERY
def test_learns_64_images_by_heart(name, world):
    contract.learns_64_images_by_heart(case(name, world))


@EVERY
def test_step_is_made_of_detached_scalars_and_whole_pending(name, world):
    contract.step_is_made_of_detached_scalars_and_whole_pending(case(name, world))
    objective = warm(make(name, world))
    b = batch(objective, IDS, 3)
    result = objective(b)
    for tag, value in (result.scalars | objective.diagnostics(result, b)).items():
        assert re.fullmatch(r"(learn|ae|vae|latent|energy|codes|density|collapse)/[a-z_]+", tag)
        assert value.dtype == torch.float64 or tag in ("learn/queue_age", "vae/active_units"), tag


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
    contract.what_is_not_finite_shows_in_the_loss(case(name, world))


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
    contract.first_weights_depend_on_the_seed_alone(case(name, world))
    # One that predicts codes starts at the lasso that it was given, whatever the seed.
    first = make(name, world, seed=5).state_dict()
    assert bool(contract.changed(first, make(name, world, seed=6))) == (not CASES[name].inputs.signals)


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
