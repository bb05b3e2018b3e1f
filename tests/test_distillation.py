"""Self-distillation: collapses made on purpose are named within 200 steps, healthy trainings are left alone."""

import pytest

from pipeline.settings.distillation import BYOL, DINO, SimSiam
from pipeline.settings.objectives import Head
from tests.test_monitor import STEPS, flagged, run

HEAD, DEEP = Head(hidden=64, dim=32, norm="hidden"), Head(hidden=64, dim=32, layers=3, norm="hidden")
NARROW = Head(hidden=16, dim=32, norm="hidden")
HEALTHY = {
    "byol": BYOL(momentum=0.9, head=HEAD, predictor=HEAD),
    "simsiam": SimSiam(head=DEEP.model_copy(update={"norm": "all"}), predictor=NARROW),
    "dino": DINO(momentum=0.99, prototypes=256, head=DEEP),
}
BALANCED = HEALTHY["dino"].model_copy(update={"momentum": 0.9, "prototypes": 64})
COLLAPSED = {
    "byol without a predictor": (BYOL(momentum=0.9, head=HEAD, predictor=None), "nearly one point"),
    "simsiam without a predictor": (SimSiam(head=DEEP, predictor=None), "nearly one point"),
    "simsiam with all gradients": (SimSiam(head=DEEP, predictor=NARROW, stop_gradient=False), "nearly one point"),
    "dino without centring": (BALANCED.model_copy(update={"centre_momentum": 1.0}), "one distribution"),
    "dino without sharpening": (
        BALANCED.model_copy(update={"first_teacher_temperature": 1.0, "teacher_temperature": 1.0}), "one distribution",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", COLLAPSED)
def test_nothing_keeps_them_apart(name, digits, tmp_path, world):
    objective, words = COLLAPSED[name]
    flagged(digits, tmp_path / "a", world, objective, words)


@pytest.mark.slow
def test_a_last_batch_norm_hides_the_point(digits, tmp_path, world, capsys):
    """Of the paper's projection: it keeps each dimension's deviation at 1, and all of them come to say the same."""
    settings = HEALTHY["simsiam"].model_copy(update={"predictor": None})
    rows = run(digits, tmp_path / "a", world, settings, collapse="say")
    assert rows[-1]["energy/volume"] > 0.5 and rows[-1]["collapse/directions"] < 1.5
    assert "ends with a sign of collapse" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_trainings_are_left_alone(name, digits, tmp_path, world, capsys):
    rows = run(digits, tmp_path / "a", world, HEALTHY[name])
    assert rows[-1]["step"] == STEPS and "collapse" not in capsys.readouterr().out
    assert rows[-1]["collapse/alignment_ratio"] < 0.75
