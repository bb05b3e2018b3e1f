"""Latent-variable energies against the lasso's solvers, closed forms and finite differences; what trained ones do."""

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline import keyed, objectives
from pipeline.config import load
from pipeline.data.shards import Shards
from pipeline.errors import ConfigError
from pipeline.objectives.base import Setup
from pipeline.objectives.latent_energies import Latent, auroc
from pipeline.settings.latent_energies import Filters
from pipeline.settings.latent_energies import Latent as Settings
from pipeline.settings.nets import MLP
from pipeline.settings.objectives import Decoder
from pipeline.sparse import proximal, solvers
from pipeline.stages.generate import pixels
from tests.cases import IMAGE, SAMPLES, batch
from tests.small import ROOT, alone, only
from tests.test_sparse import problem

IDS = list(range(12))
SMALL = Decoder(width=8, layers=1, activation="silu")
BALLS = Settings(condition="half", latent=2, decoder=SMALL, regulariser="noise", width=0.3, steps=100)
LINEAR_BALLS = Settings(latent=5, regulariser="noise", width=0.3, steps=60)
SPARSE = Settings(latent=90, penalty=0.3, steps=400)


def build(settings: Settings, world, **weights: Tensor) -> Latent:
    """The objective in float64."""
    made = Latent(settings, Setup(IMAGE, SAMPLES, MLP(width=8, activation="silu"), world, 0)).double()
    made.load_state_dict(weights, strict=False)
    return made


@pytest.mark.slow
def test_proximal_gradient_solves_the_lasso():
    y, d = problem(20, 50)
    wanted = solvers.descend(y, d, 0.1, 1e-13).z

    def smooth(z: Tensor) -> Tensor:
        return (y[: len(z)] - z @ d.T).square().sum(1) / 2

    def threshold(z: Tensor, step: Tensor) -> Tensor:
        return solvers.soft_threshold(z, 0.1 * step)

    found = proximal.minimise(smooth, threshold, torch.zeros(30, 50).double(), 500)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    alone = proximal.minimise(smooth, threshold, torch.zeros(1, 50).double(), 500)
    torch.testing.assert_close(alone, found[:1], rtol=0, atol=1e-12)


def test_without_an_encoder_a_linear_decoder_has_the_lassos_codes(world):
    o = build(SPARSE, world)
    b = batch(o, IDS)
    y, d = o.net.lasso(b.views[0])  # type: ignore[misc]
    assert torch.equal(y, b.views[0].flatten(1)) and d.shape == (64, 90)
    wanted = solvers.encode(y, d, 0.3, 1e-13)
    at = o.infer(b)
    torch.testing.assert_close(at.z, wanted.z, rtol=0, atol=1e-6)
    torch.testing.assert_close(at.low, solvers.energy(y, d, wanted.z, 0.3), rtol=0, atol=1e-10)
    assert 0 <= float(o.diagnostics(o(b), b)["latent/gap"]) < 1e-9
    torch.testing.assert_close(o.encoder(b.views[0]), at.z, rtol=0, atol=0)


@pytest.mark.slow
def test_the_gap_knows_the_encoders_pull_and_the_part_that_is_given(world):
    o = build(replace_settings(SPARSE, condition="half", prediction=0.7), world)
    b = batch(o, IDS)
    y, d = o.net.lasso(b.views[0])  # type: ignore[misc]
    at = o.infer(b)
    torch.testing.assert_close(solvers.energy(y, d, at.z, 0.3), at.low, rtol=1e-10, atol=1e-12)
    assert 0 <= float(o.diagnostics(o(b), b)["latent/gap"]) < 1e-9 < float(gap_after(o, b, 3))


def gap_after(o: Latent, b: Any, steps: int) -> Tensor:
    few = Latent(replace_settings(o.settings, steps=steps), Setup(IMAGE, SAMPLES, MLP(width=8), o.world, 0)).double()
    return few.diagnostics(few(b), b)["latent/gap"]


def replace_settings(settings: Settings, **changes: Any) -> Settings:
    return settings.model_copy(update=changes)


@pytest.mark.parametrize(
    "settings", [BALLS, replace_settings(BALLS, cost="bernoulli", prediction=0.5), SPARSE], ids=["balls", "psd", "l1"]
)
def test_the_gradient_is_that_of_the_least_energy(settings, world):
    """The envelope theorem, by finite differences of F along a random direction of all weights."""
    o = build(settings, world)
    b = batch(o, IDS)
    with torch.no_grad():
        for p in o.net.decoder.parameters():
            p.mul_(0.9)  # a column of length 1 has a slope on either side
    first, loss = [p.detach().clone() for p in o.parameters()], o(b).loss
    weights = list(o.parameters())
    slopes = torch.autograd.grad(loss, weights)
    away = [torch.randn(p.shape, generator=torch.Generator().manual_seed(i)).to(p) for i, p in enumerate(weights)]
    slope, both, step = sum(float((g * v).sum()) for g, v in zip(slopes, away, strict=True)), [], 1e-5
    for sign in (1, -1):
        with torch.no_grad():
            for p, start, v in zip(weights, first, away, strict=True):
                p.copy_(start + sign * step * v)
            both.append(float(o(b).loss))
    assert abs(slope) > 0.1
    assert (both[0] - both[1]) / (2 * step) == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("decoder", [{}, {"decoder": Filters(filters=2, side=3)}], ids=["linear", "filters"])
def test_without_a_penalty_everything_is_free_and_with_a_large_one_nothing_is(decoder: dict[str, Any], world):
    """F = 0 of data and of noise alike, where a code has as many units as an image; z = 0 past the largest penalty."""
    free = build(Settings.model_validate({"penalty": 0, "steps": 400} | (decoder or {"latent": 128})), world)
    b = batch(free, IDS)
    others = free.others(b.views[0], 0)
    for images in (b.views[0], *others.values(), torch.rand(12, 1, 8, 8).double()):
        scale = images.square().flatten(1).sum(1) / 2
        assert float((free.infer(replace(b, views=(images,))).low.detach() / scale).max()) < 1e-6
    dear = build(Settings.model_validate({"penalty": 100} | decoder), world)
    at = dear.infer(b)
    assert not at.z.any()
    torch.testing.assert_close(at.low, b.views[0].square().flatten(1).sum(1) / 2)
    signs = dear.collapse_signs({tag: float(value) for tag, value in dear(b).scalars.items()})
    assert set(signs) == {"zero"}


@pytest.mark.parametrize("condition", ["half", "quarter", "random"])
def test_the_prediction_is_of_the_given_part_and_the_cost_of_the_rest(condition, world):
    o = build(replace_settings(BALLS, condition=condition, steps=5), world)
    b = batch(o, IDS)
    hidden = o.hidden(b).expand(12, 1, 8, 8)
    share = {"half": 0.5, "quarter": 0.75, "random": 0.5}[condition]
    assert float(hidden.double().mean()) == pytest.approx(share, abs=0.1 * (condition == "random"))
    other = torch.rand(12, 1, 8, 8).double()
    of_y, of_x = (torch.where(part, other, b.views[0]) for part in (hidden, ~hidden))
    contexts: Any = [o.net.context(images, hidden) for images in (b.views[0], of_y, of_x)]
    assert torch.equal(contexts[1], contexts[0]) and not torch.equal(contexts[2], contexts[0])
    z = torch.ones(12, 2).double()
    costs = [o.net.cost(images, hidden, z, contexts[0]) for images in (b.views[0], of_x, of_y)]
    assert torch.equal(costs[0], costs[1]) and not torch.equal(costs[0], costs[2])


@pytest.mark.parametrize("decoder", [SMALL, Decoder(kind="conv", width=8, activation="silu"), Filters(filters=3)])
def test_no_scale_of_the_decoder_undoes_the_penalty(decoder, world):
    """Columns are at most 1: a weight that is ten times as large is the same."""
    o = build(Settings(decoder=decoder), world)
    parts = [m for m in o.net.decoder.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert all(float(lengths(m).detach().max()) < 1 + 1e-12 for m in parts)
    with torch.no_grad():
        for name, p in o.net.decoder.named_parameters():
            p.mul_(100 if name.endswith("original") else 1)
    for m in parts:
        torch.testing.assert_close(lengths(m), torch.ones_like(lengths(m)))


def lengths(layer: Any) -> Tensor:
    """Of the columns of its weight."""
    return layer.weight.transpose(0, 1).flatten(1).norm(dim=1)


def test_noise_cannot_be_taken_back(world):
    """It lies on both sides of a code: what a linear decoder makes of it is added to the energy, whatever the code."""
    o = build(LINEAR_BALLS, world)
    b = batch(o, IDS)
    quiet = build(replace_settings(LINEAR_BALLS, regulariser="l2"), world).infer(b)
    at, noise = o.infer(b), 0.3 * b.normal("noise", 5)
    added = (noise @ o.net.decoder.first[0].weight.T).square().sum(1) / 2
    torch.testing.assert_close(at.z, quiet.z, rtol=0, atol=1e-6)
    torch.testing.assert_close(at.low, quiet.low + added, rtol=1e-9, atol=0)


def test_auroc_of_energies():
    assert auroc(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 2.0])) == 0.75
    assert auroc(torch.zeros(3), torch.zeros(2)) == 0.5


def test_what_a_trained_one_draws(world):
    o = build(replace_settings(BALLS, steps=5), world)
    b = batch(o, list(range(40)))
    assert {tag for tag in o.figures(b.views[0], [""] * 40, 0)} == {
        "reconstructions", "latent/penalties", "latent/completions",
    }  # fmt: skip
    o.commit(o(b).pending, 0)
    codes = o.infer(b).z
    drawn = o.draw_codes(8, 0, "few")
    assert all(any(torch.equal(z, code) for code in codes) for z in drawn)
    filled, hidden = o.complete(b, drawn), o.net.hidden(b.views[0])
    given = (~hidden).expand_as(filled)
    assert torch.equal(filled[given], b.views[0].expand_as(filled)[given])
    names = {"auroc_noise", "auroc_halves", "nearer", "nearest"}
    assert set(o.measures(b.views[0], 0)) == {f"latent/{name}" for name in names}
    linear = build(replace_settings(SPARSE, steps=5), world)
    assert {tag for tag in linear.figures(b.views[0], [""] * 40, 0)} == {
        "reconstructions", "latent/penalties", "latent/atoms",
    }  # fmt: skip


@pytest.mark.slow
def test_half_a_digit_leaves_open_what_two_units_say(tmp_path):
    """As `configs/latent.yaml` trains it, used by another process than the one that trained it: images of two halves
    and noise lie above test images, and of eight completions one is nearer than their mean."""
    words = ["run", str(ROOT / "configs/latent.yaml"), "--here", f"root={tmp_path}", "--only", "halves_drawn"]
    done = subprocess.run([sys.executable, "-m", "pipeline", *words], cwd=ROOT, env=alone(), capture_output=True)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    metrics = json.loads(only(tmp_path, "halves_drawn-*/artifact.json").read_text())["metrics"]
    assert metrics["auroc_noise"] > 0.95 and metrics["auroc_halves"] > 0.93
    assert metrics["nearer"] > 0.8 and metrics["nearest"] < 0.95
    shards, ids = Shards.open(only(tmp_path, "shards-*"), "test"), keyed.permute(np.arange(359), 359, 0, "shown")
    found = objectives.load(only(tmp_path, "halves-*")).measures(pixels(shards, ids), 0)
    assert {f"latent/{name}" for name in ("nearer", "nearest", "auroc_noise", "auroc_halves")} == set(found)
    for tag, value in found.items():
        assert metrics[tag.partition("/")[2]] == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(
    "words, text",
    [
        ("regulariser: none, penalty: 1", "is of nothing with regulariser: none"),
        ("width: 2", "is for regulariser: noise"),
        ("decoder: {kind: filters}, latent: 3", "has a unit for each filter and pixel"),
        ("decoder: {kind: filters, side: 4}", "expected an odd number"),
        ("decoder: {kind: mlp}", "slopes of ReLUs jump"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(words, text, tmp_path):
    path = tmp_path / "c.yaml"
    objective = f"objective: {{kind: latent, {words}}}"
    path.write_text(f"stages:\n  s: {{kind: pack}}\n  e: {{kind: pretrain, data: s, {objective}}}\n")
    with pytest.raises(ConfigError, match=text):
        load(path)
