"""Views of characters: maps of the law that the settings name, and a smooth field of the stated size."""

import math

import numpy as np
import pytest
import torch

from pipeline import keyed
from pipeline.settings.data import Characters
from pipeline.views import affine

IDS = np.arange(3000)
STILL = {"rotation": 0.0, "shear": 0.0, "scale": (1.0, 1.0), "shift": 0.0, "contrast": (1.0, 1.0)}


def pictures(count: int, side: int) -> torch.Tensor:
    u = keyed.uniform(side * side, "characters", np.arange(count))
    return torch.from_numpy((255 * u).round().astype(np.uint8)).view(count, 1, side, side)


def test_nothing_drawn_changes_nothing():
    images = pictures(8, 9)
    seen = affine.view(images, Characters(**STILL), 0, 0, np.arange(8), "one", 9)
    assert (seen * 255 - images).abs().max() < 1e-3


def test_a_rotation_is_a_rotation():
    """Where all but the angle is still, the map is orthogonal, and its angle uniform in ± the setting."""
    maps = affine.affine_matrices(Characters(**(STILL | {"rotation": 30.0})), 0, 0, IDS, "one")
    turn = maps[:, :, :2]
    assert torch.allclose(turn @ turn.mT, torch.eye(2).expand_as(turn), atol=1e-6) and not maps[:, :, 2].any()
    angle = torch.rad2deg(torch.atan2(turn[:, 1, 0], turn[:, 0, 0]))
    assert angle.abs().max() <= 30 and abs(float(angle.std()) - 60 / math.sqrt(12)) < 0.5


def test_scale_and_shift_are_as_set():
    maps = affine.affine_matrices(Characters(**(STILL | {"scale": (0.5, 2.0), "shift": 0.25})), 0, 0, IDS, "one")
    grown = 1 / maps[:, 0, 0]
    assert 0.5 <= float(grown.min()) < 0.52 and 1.98 < float(grown.max()) <= 2.0
    shift = maps[:, :, 2] / 2  # of the side
    assert 0.24 < float(shift.abs().max()) <= 0.25


@pytest.mark.parametrize("sigma", [2.5, 4.0])
def test_bending_is_noise_smoothed_by_a_gaussian(sigma):
    """Root mean square as set at every place, no direction before the other, correlation e^(-d^2 / 4 sigma^2)."""
    side = 28
    field = affine.displacements(Characters(elastic=1.5, elastic_sigma=sigma), 0, 0, IDS, "one", side) * side / 2
    rms = field.square().mean(0).sqrt()
    assert (rms - 1.5).abs().max() < 0.12
    middle = field[:, side // 2, side // 2]
    assert abs(float((middle[:, 0] * middle[:, 1]).mean())) < 0.15
    for d in (1, 3, 6, 10):
        found = (middle * field[:, side // 2, side // 2 + d]).mean() / 1.5**2
        assert abs(float(found) - math.exp(-(d**2) / (4 * sigma**2))) < 0.06


def test_a_view_depends_on_no_other():
    settings = Characters(elastic=1.0)
    images = pictures(6, 12)
    together = affine.view(images, settings, 3, 1, np.arange(6), "two", 12)
    for i in range(6):
        alone = affine.view(images[i : i + 1], settings, 3, 1, np.array([i]), "two", 12)
        assert torch.allclose(alone[0], together[i], atol=1e-6)
    other = affine.view(images, settings, 3, 2, np.arange(6), "two", 12)
    assert (other - together).abs().amax((1, 2, 3)).min() > 0.01


def test_strokes_are_widened_and_narrowed():
    """Between the least and the largest of the nine pixels around, either way for half of the images."""
    settings = Characters(**STILL, stroke=1.0)
    images = pictures(200, 9)
    seen = affine.view(images, settings, 0, 0, np.arange(200), "one", 9) * 255
    padded = torch.nn.functional.pad(images.float(), (1, 1, 1, 1), value=torch.nan)
    around = padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4)
    least, largest = around.nan_to_num(999).amin(4), around.nan_to_num(-1).amax(4)
    wider = (seen - images).amax((1, 2, 3)) > 1
    assert 80 < int(wider.sum()) < 120
    goal = torch.where(wider[:, None, None, None], largest, least)
    for image, view, extreme in zip(images.float(), seen, goal, strict=True):
        clear = (extreme - image).abs() > 50
        share = ((view - image) / (extreme - image))[clear]
        assert float(share.std()) < 0.01 and -0.01 < float(share.mean()) <= 1.001


def test_strokes_left_alone_are_left_alone():
    images = pictures(8, 9)
    one, other = (affine.view(images, Characters(stroke=s), 0, 0, np.arange(8), "one", 9) for s in (0.0, 1e-9))
    assert torch.allclose(one, other, atol=1e-6)


def test_shears_along_both_axes_are_drawn_apart():
    maps = affine.affine_matrices(Characters(**(STILL | {"shear": 15.0})), 0, 0, IDS, "one")
    across, down = (torch.rad2deg(maps[:, *at].atan()) for at in ((0, 1), (1, 0)))
    for shear in (across, down):
        assert 14.9 < float(shear.abs().max()) <= 15.01 and abs(float(shear.std()) - 30 / math.sqrt(12)) < 0.3
    assert abs(float(torch.corrcoef(torch.stack([across, down]))[0, 1])) < 0.1


def test_a_scale_above_one_enlarges():
    """A square of 4 of 16 pixels, twice as large, covers 8."""
    image = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    image[:, :, 6:10, 6:10] = 255
    seen = affine.view(image, Characters(**(STILL | {"scale": (2.0, 2.0)})), 0, 0, np.arange(1), "one", 16)
    assert 7.5 < float(seen[0, 0, 8].sum()) < 8.5


def test_patches_have_contrasts_of_their_own():
    patches = torch.full((200, 9, 1, 2, 2), 0.5)
    seen = affine.contrast(patches, Characters(), 0, 0, np.arange(200), "patches")[:, :, 0, 0, 0] / 0.5
    assert (seen.std(1) > 0.05).all() and 0.6 <= float(seen.min()) < 0.62 and 1.38 < float(seen.max()) <= 1.4
