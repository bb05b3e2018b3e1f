"""An objective of no family, written as a user would: it keeps the whole contract, trains through the stage, is saved,
loaded and probed, and nothing elsewhere knows of it."""

import json
import warnings
from typing import Literal

import pytest
import torch
from torch.nn.functional import softplus

from pipeline import objectives
from pipeline.nets import trunks
from pipeline.objectives import OBJECTIVES
from pipeline.objectives.base import Objective, Sign, Step
from pipeline.objectives.energies import full, full_precision
from pipeline.settings import objectives as settings
from pipeline.settings.nets import MLP, Norm
from pipeline.settings.objectives import Inputs
from pipeline.settings.stages import Pretrain, Probe
from pipeline.settings.training import Adam
from pipeline.stages import pretrain, probe
from pipeline.training import loop
from tests import test_objectives
from tests.cases import CASES, batch, make


class MeanFieldSettings(settings.Objective):
    inputs = Inputs(views=0)
    kind: Literal["mean_field"] = "mean_field"
    coupling: float = 1.0


class MeanField(Objective):
    """Spins in the field of their mean (Weiss 1907): E(h) = - coupling h m / d with m the mean of tanh(h) over the
    global batch, against the energy of noise in h's place, which is drawn where the whole batch is looked at."""

    Settings = MeanFieldSettings
    normalised = False
    coupled = True

    def __init__(self, settings, setup):
        super().__init__()
        self.settings, self.world = settings, setup.world
        self.trunk = trunks.build(setup.net, setup.image, setup.world, setup.seed)

    def embed(self, batch):
        return (full(self.trunk(batch.views[0])),)

    def score(self, embedded, batch):
        (h,) = embedded
        with full_precision(h):
            mean = self.world.sum(h.tanh().mean(0)) / self.world.size
            field = self.settings.coupling * mean / h.shape[1]
            low, high = -h @ field, -(batch.normal("noise", h.shape[1]) @ field)[:, None]
            scalars = {"energy/field": mean.detach().norm()}
            return Step(softplus(low - high[:, 0]).mean(), low, high, scalars, per_sample={"spins": h.detach()})

    def diagnostics(self, step, batch):
        return {"energy/spread": self.world.gather(step.per_sample["spins"]).std()}

    def collapse_signs(self, scalars):
        return {"flat": Sign("there is no field")} if scalars["energy/field"] == 0 else {}

    def energy_count(self, share, batch):
        return share

    @property
    def encoder(self):
        return self.trunk


CONTRACT = [
    check
    for check in vars(test_objectives).values()
    for mark in getattr(check, "pytestmark", [])
    if mark.name == "parametrize" and mark.args[0] == "name" and mark.args[1] is CASES
]


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "mean_field", MeanField)
    monkeypatch.setitem(CASES, "mean_field", MeanFieldSettings())


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
def test_it_keeps_the_contract(check, known, world):
    check("mean_field", world)


def test_the_contract_is_the_whole_suites():
    assert len(CONTRACT) >= 12
    test_objectives.test_the_suite_holds_every_objective()


def test_what_is_drawn_in_score_is_the_samples_own(known, world):
    """In one batch or in two passes over micro-batches, where the views are gone when the whole batch is scored."""
    one, two = (make("mean_field", world, norm=Norm(kind="none")) for _ in range(2))
    ids = [3, 1, 12, 25, 9, 30, 17, 6]
    parts = [batch(two, ids[i : i + 2], 3) for i in range(0, 8, 2)]
    a, b = loop.backward(one, one, [batch(one, ids, 3)]), loop.backward(two, two, parts)
    torch.testing.assert_close(a.high, b.high, rtol=1e-12, atol=0)
    assert len(a.high.unique()) == 8 and a.high.dtype == torch.float64


def test_it_trains_through_the_stage_is_saved_loaded_and_probed(known, digits, tmp_path, world):
    chosen = Pretrain(data="shards", net=MLP(width=32), steps=30, batch=64, optimiser=Adam(), log_steps=10,
                      snapshots=1, save_steps=30)  # fmt: skip
    chosen = chosen.model_copy(update={"objective": MeanFieldSettings(coupling=2.0)})
    out = tmp_path / "toy"
    out.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # pydantic, of a kind that its union does not list
        scalars = pretrain.run(chosen, 0, {"shards": digits}, out, world)
    assert scalars["learn/loss"] > 0 and {"energy/field", "energy/spread"} <= set(scalars)
    spec = json.loads((out / "model.json").read_text())
    assert set(spec) == {"objective", "net", "image"} and spec["objective"]["coupling"] == 2.0
    loaded = objectives.load(out)
    assert isinstance(loaded, MeanField) and not loaded.training and loaded.settings.coupling == 2.0
    assert (out / "snapshots/00000015/model.json").exists()
    images = torch.rand(5, 1, 8, 8)
    assert loaded.encoder(images).shape == (5, 32)
    (tmp_path / "probe").mkdir()
    judged = Probe(data="shards", encoders=("toy",), draws=2, train_examples=300)
    metrics = probe.run(judged, 0, {"shards": digits, "toy": out}, tmp_path / "probe", world)
    assert metrics["rows"]["toy"]["linear_top1"] > 0.5 and "random" in metrics["rows"]
