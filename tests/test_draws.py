"""Every draw of a view is its own: of each seed, epoch, sample, view and patch. The photometric set is Pillow's."""

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms.v2 import functional as F

from pipeline.image import Image
from pipeline.settings.data import Characters, MoCoV1, MoCoV2, PirlViews, SmallCrops
from pipeline.settings.objectives import Inputs, Jigsaw
from pipeline.views import affine, crops, enhance, jigsaw, photometrics, transforms
from tests.test_views import apply, finished, pictures

__all__ = ["apply"]  # a fixture

FLAT = [torch.tensor([90, 140, 60], dtype=torch.uint8).view(3, 1, 1).expand(3, 60, 60)] * 20


@pytest.mark.parametrize("views", [MoCoV2(size=8), Characters(size=60)], ids=["natural", "characters"])
def test_colours_are_drawn_for_each_view_and_each_epoch(views):
    """Of an image of one colour, so that no crop tells: what differs is the jitter's, or the contrast's."""
    transform = transforms.build(Inputs(), (views,), Image(3, views.size, (0.0,) * 3, (1.0,) * 3), 0)
    middle = slice(views.size // 3, 2 * views.size // 3)  # which no bending leaves
    every = [v for epoch in (0, 1) for v in finished(transform, FLAT, np.arange(20), epoch)]
    seen = [v[:, :, middle, middle].mean((2, 3)) for v in every]
    for i in range(4):
        for j in range(i):
            assert ((seen[i] - seen[j]).abs().amax(1) > 1e-3).float().mean() > 0.8, (i, j)


DRAWS = {
    "boxes": lambda *words: crops.draw(*words, "one", (0.1, 1), (3 / 4, 4 / 3), 0.5).corners,
    "flips": lambda *words: crops.draw(*words, "one", (0.1, 1), (3 / 4, 4 / 3), 0.5).flips,
    "areas": lambda *words: crops.draw(*words, "one", (0.1, 1), (3 / 4, 4 / 3), 0.5).widths,
    "order of patches": lambda *words: jigsaw.orders(*words, 9),
    "jitter of patches": lambda *words: jigsaw.corners(*words, 3, 85, 64),
    "flips of patches": lambda *words: jigsaw.draw(*words, Jigsaw(), 32, (3 / 4, 4 / 3), 0.5).flips,
    "colours": lambda *words: photometrics.draw(MoCoV2(), *words, "one").factors,
    "order of colours": lambda *words: photometrics.draw(MoCoV1(), *words, "one").order,
    "blur": lambda *words: photometrics.draw(MoCoV2(), *words, "one").sigma,
    "grey": lambda *words: photometrics.draw(MoCoV2(), *words, "one").grey,
    "solarise": lambda *words: photometrics.draw(MoCoV2(solarise_p=0.4), *words, "one").solarise,
    "matrices": lambda *words: affine.affine_matrices(Characters(), *words, "one").numpy(),
    "bending": lambda *words: affine.displacements(Characters(elastic=1), *words, "one", 8).numpy(),
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_new_for_every_seed_epoch_and_sample(name):
    ids = np.arange(400)
    drawn = DRAWS[name](3, 5, ids)
    assert np.array_equal(drawn, DRAWS[name](3, 5, ids))
    for other in (DRAWS[name](4, 5, ids), DRAWS[name](3, 6, ids), DRAWS[name](3, 5, ids + 400)):
        assert (other != drawn).reshape(400, -1).any(1).mean() > 0.2  # of coins with p 0.2: 0.32
    assert len(np.unique(drawn.reshape(400, -1), axis=0)) > 1


def test_enlarged_crops_have_the_area_that_is_stated():
    """Of a ramp, what a crop spans is its side: the root of a share of the area between 1/4 and 1, uniform."""
    ramp = (torch.arange(64) * 4).to(torch.uint8).expand(2000, 1, 64, 64)
    crop = jigsaw.enlarge(ramp, (0.25, 1.0), 16, 0, 0, np.arange(2000)) * 255
    side = (crop[:, 0, 8, 12] - crop[:, 0, 8, 3]) / (9 / 16) / 256  # away from the border
    area = side.square().numpy()
    assert stats.kstest(area, "uniform", (0.25, 0.75)).pvalue > 1e-4


def test_small_crops_have_colours_of_their_own():
    small = SmallCrops(count=3, size=8)
    transform = transforms.build(Inputs(), (MoCoV2(size=24, small=small),), Image(3, 24, (0.0,) * 3, (1.0,) * 3), 0)
    views = finished(transform, FLAT, np.arange(20))
    seen = torch.cat([v[:, None].mean((3, 4)) for v in views[:2]] + [views[2].mean((3, 4))], 1)
    for i in range(5):
        for j in range(i):
            assert ((seen[:, i] - seen[:, j]).abs().amax(1) > 1e-3).float().mean() > 0.8, (i, j)


def test_characters_are_normalised():
    """A view of one grey, its contrast still: (102 / 255 - 0.3) / 0.4, and the same in each patch."""
    still = Characters(contrast=(1.0, 1.0), shift=0.0, scale=(2.0, 2.0), shear=0.0)
    for inputs in (Inputs(), Inputs(jigsaw=Jigsaw())):
        transform = transforms.build(inputs, (still,), Image(1, 24, (0.3,), (0.4,)), 0)
        for view in finished(transform, [torch.full((1, 24, 24), 102, dtype=torch.uint8)] * 2, np.arange(2)):
            torch.testing.assert_close(view, torch.full_like(view, 0.25), atol=1e-5, rtol=0)


# ---- the photometric set


@pytest.mark.parametrize("channels", [1, 3])
def test_the_photometric_set_is_pillows_to_the_bit(channels, apply):
    """Posterised, sharpened, solarised, stretched, then grey: 200 images of bytes against Pillow, one at a time."""
    from PIL import ImageEnhance, ImageOps

    n = 200
    images = pictures(n, channels, 20, 17)
    images[0], images[1], images[2] = 0, 255, images[2] // 7 + 40
    settings = PirlViews(jitter_p=0.0, photometric_p=0.7)
    draws = photometrics.draw(settings, 3, 0, np.arange(n), "one")
    assert draws.distortion is not None
    chosen, seen = draws.distortion.stretch, apply(images, draws, 1) * 255
    assert 0.6 < chosen.mean() < 0.8
    drawn = [v[chosen] for v in (draws.distortion.bits, draws.distortion.threshold, draws.distortion.sharpness)]
    assert set(drawn[0]) == {4, 5, 6, 7, 8} and drawn[1].min() < 30 and 226 < drawn[1].max() <= 256
    assert 0.1 <= drawn[2].min() < 0.2 and 1.8 < drawn[2].max() <= 1.9
    for i in range(n):
        x = F.to_pil_image(images[i])
        if chosen[i]:
            x = ImageOps.posterize(x, int(draws.distortion.bits[i]))
            x = ImageEnhance.Sharpness(x).enhance(float(draws.distortion.sharpness[i]))
            x = ImageOps.autocontrast(ImageOps.solarize(x, int(draws.distortion.threshold[i])))
        x = F.pil_to_tensor(x).float()
        if draws.grey[i] and channels == 3:
            torch.testing.assert_close(seen[i], F.rgb_to_grayscale(x, 3), atol=1e-3, rtol=0)
        else:
            torch.testing.assert_close(seen[i], x, atol=1e-3, rtol=0)


def test_the_photometric_set_comes_after_the_jitter(apply):
    """What a jitter makes, as bytes, is what the set is given."""
    images = pictures(30, 3, 16, 16)
    both = photometrics.draw(PirlViews(photometric_p=1.0, grey_p=0.0), 0, 0, np.arange(30), "one")
    jitter = photometrics.draw(PirlViews(photometric_p=0.0, grey_p=0.0), 0, 0, np.arange(30), "one")
    assert both.distortion is not None and np.array_equal(both.factors, jitter.factors)
    between = (apply(images, jitter, 1) * 255).round().byte()
    after = enhance.distort(between, both.distortion).float() / 255
    torch.testing.assert_close(apply(images, both, 1), after, atol=1e-6, rtol=0)
