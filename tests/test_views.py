"""Views against torchvision: every operation at the same parameters, every parameter's distribution, no company."""

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from pipeline import keyed
from pipeline.image import Image
from pipeline.settings.data import ByolFirst, Characters, Crops, MoCoV1, MoCoV2, PirlViews, SimCLRViews, SmallCrops
from pipeline.settings.objectives import Inputs, Jigsaw
from pipeline.views import crops, jigsaw, photometrics, transforms

MANY = 100_000
IDS = np.arange(MANY)
PHOTO = Image(3, 48, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def pictures(count: int, channels: int, height: int, width: int) -> torch.Tensor:
    """Smooth colour with sharp edges and noise, uint8 [count, channels, height, width]."""
    u = torch.from_numpy(keyed.uniform(channels * height * width, "pictures", np.arange(count))).float()
    noise = u.view(count, channels, height, width)
    smooth = torch.nn.functional.avg_pool2d(noise, 9, 1, 4, count_include_pad=False)
    smooth = (smooth - smooth.amin()) / (smooth.amax() - smooth.amin())
    mixed = smooth + 0.3 * (noise - 0.5) + 0.4 * (smooth > 0.5)
    return (mixed.clamp(0, 1) * 255).round().byte()


def plain_image(channels: int, side: int = 1) -> Image:
    """One whose normalisation changes nothing."""
    return Image(channels, side, (0.0,) * channels, (1.0,) * channels)


def plain(count: int, **changes) -> photometrics.Draws:
    """Draws that leave an image as it is, but for ``changes``."""
    none = {
        "factors": np.ones((count, 4), np.float32),
        "order": np.full((count, 4), -1),
        "grey": np.zeros(count, bool),
        "sigma": np.zeros(count),
        "solarise": np.zeros(count, bool),
    }
    return photometrics.Draws(**(none | changes))


# ---- crops


def boxes(ids, height, width, scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), seed=0) -> np.ndarray:
    params = crops.draw(seed, 0, ids, "one", scale, ratio, 0.5)
    return np.array([params.box(i, height, width) for i in range(len(ids))])


@pytest.mark.parametrize(("height", "width"), [(375, 500), (32, 32), (500, 90), (40, 400)])
@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.08, 1.0), (0.6, 1.0)])
def test_boxes_are_distributed_as_torchvisions(height, width, scale):
    n = 2000
    ours = boxes(np.arange(20 * n), height, width, scale)
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = v2.RandomResizedCrop(8, scale, antialias=True)
    params = [theirs.make_params([image]) for _ in range(n)]
    theirs = np.array([[p[k] for k in ("top", "left", "height", "width")] for p in params])
    for i in range(4):
        assert stats.ks_2samp(ours[:, i], theirs[:, i]).pvalue > 1e-4
    assert stats.ks_2samp(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]).pvalue > 1e-4


def test_areas_and_ratios_have_the_laws_that_are_stated():
    """Where nearly every try fits: 1e5 crops of a large square, from 1 to 20 % of it."""
    _, _, h, w = boxes(IDS, 10**5, 10**5, (0.01, 0.2)).T.astype(float)
    assert stats.kstest(h * w / 1e10, "uniform", (0.01, 0.19)).pvalue > 1e-4
    ratios = np.log(w / h)
    assert stats.kstest(ratios, "uniform", (-np.log(4 / 3), 2 * np.log(4 / 3))).pvalue > 1e-4


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 900), (900, 1), (8, 8), (333, 500), (8, 65)])
def test_boxes_lie_inside(height, width):
    y, x, h, w = boxes(np.arange(20_000), height, width, (0.08, 1.0)).T
    assert (h >= 1).all() and (w >= 1).all() and (y >= 0).all() and (x >= 0).all()
    assert (y + h <= height).all() and (x + w <= width).all()


def test_the_fallback_is_torchvisions():
    torch.manual_seed(0)
    for height, width in [(1, 900), (900, 1), (10, 100), (100, 10), (37, 150)]:
        params = v2.RandomResizedCrop(8, (1.0, 1.0), (0.9, 1.1)).make_params([torch.empty(3, height, width)])
        ours = boxes(np.arange(1), height, width, (1.0, 1.0), (0.9, 1.1))[0]
        assert ours.tolist() == [params[k] for k in ("top", "left", "height", "width")]


def test_a_box_is_the_same_compiled_or_not():
    params = crops.draw(0, 0, np.arange(300), "one", (0.08, 1.0), (3 / 4, 4 / 3), 0.5)
    for i in range(300):
        size = 20 + i, 320 - i
        plain = crops.box.py_func(params.widths[i], params.heights[i], params.corners[i], *size, *params.ratio)
        assert params.box(i, *size) == plain


@pytest.mark.parametrize("side", [8, 32, 63, 64, 224])
@pytest.mark.parametrize(("height", "width"), [(200, 260), (32, 32), (1, 40), (40, 1)])
def test_crops_are_torchvisions_to_the_bit(side, height, width):
    """Enlarged or shrunk, by our resampler (below 64 pixels) or by torch's."""
    image = pictures(1, 3, height, width)[0].permute(1, 2, 0).contiguous().permute(2, 0, 1)  # as decoders give it
    params = crops.draw(3, 0, np.arange(40), "one", (0.01, 1.0), (3 / 4, 4 / 3), 0.5)
    out = torch.empty(side, side, 3, dtype=torch.uint8)
    for i in range(40):
        params.crop(image, i, out)
        theirs = F.resized_crop(image, *params.box(i, height, width), [side, side], antialias=True)
        assert torch.equal(out.permute(2, 0, 1), theirs.flip(-1) if params.flips[i] else theirs)


def test_half_are_mirrored():
    flips = crops.draw(0, 0, IDS, "one", (0.2, 1), (3 / 4, 4 / 3), 0.5).flips
    assert abs(flips.mean() - 0.5) < 5 * 0.5 / MANY**0.5


# ---- photometrics: one operation at a time, against torchvision on floats and on bytes


@pytest.fixture(params=["rows", "batches"])
def apply(request, monkeypatch):
    """Both implementations, as a function of images, draws and reach -> values in [0, 1]."""
    monkeypatch.setattr(photometrics, "AVAILABLE", request.param == "rows")

    def run(images: torch.Tensor, draws: photometrics.Draws, reach: int) -> torch.Tensor:
        channels = images.shape[1]
        return photometrics.finish(images, draws, reach, plain_image(channels))

    return run


OPS = {
    "brightness": lambda x, f: F.adjust_brightness(x, f),
    "contrast": lambda x, f: F.adjust_contrast(x, f),
    "saturation": lambda x, f: F.adjust_saturation(x, f),
    "hue": lambda x, f: F.adjust_hue(x, f),
}


def close_to_bytes(ours: torch.Tensor, theirs: torch.Tensor, mean: float, largest: float) -> None:
    """Differences in grey levels: torchvision rounds, or cuts, to bytes after every operation."""
    off = (ours * 255 - theirs.float()).abs()
    assert off.mean() < mean and off.max() <= largest, (off.mean(), off.max())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("op", OPS)
def test_jitter_operations_are_torchvisions(op, channels, apply):
    images = pictures(24, channels, 40, 40)
    images[0] = 0
    images[1] = 255
    images[2] = 77
    settings = Crops(jitter=(0.8, 0.8, 0.8, 0.5), jitter_p=1)
    factors = photometrics.draw(settings, 0, 0, np.arange(24), "one").factors
    order = np.full((24, 4), -1)
    order[:, 2] = list(OPS).index(op)
    ours = apply(images, plain(24, factors=factors, order=order), 1)
    for image, mine, row in zip(images, ours, factors[:, list(OPS).index(op)].tolist(), strict=True):
        torch.testing.assert_close(mine, OPS[op](image.float() / 255, row), atol=2e-6, rtol=0)
        close_to_bytes(mine, OPS[op](image, row), 1.0, 2.0)


def test_grey_and_solarised_are_torchvisions(apply):
    images = pictures(4, 3, 20, 20)
    ours = apply(images, plain(4, grey=np.array([1, 0, 1, 0], bool)), 1)
    theirs = F.rgb_to_grayscale(images.float() / 255, 3)
    torch.testing.assert_close(ours[::2], theirs[::2], atol=1e-6, rtol=0)
    assert torch.equal(ours[1::2], images[1::2].float() / 255)
    ours = apply(images, plain(4, solarise=np.array([1, 0, 0, 1], bool)), 1)
    assert torch.equal((ours[0] * 255).round().byte(), F.solarize(images[0], 128))


@pytest.mark.parametrize(("side", "reach"), [(32, 1), (48, 2), (224, 11), (8, 7), (2, 1), (1, 0)])
def test_blur_is_torchvisions(side, reach, apply):
    images = pictures(6, 3, side, side)
    sigma = np.array([0.1, 0.4, 0.9, 1.5, 2.0, 0.0])
    ours = apply(images, plain(6, sigma=sigma), reach)
    assert torch.equal(ours[5], images[5].float() / 255)
    for image, mine, s in zip(images[:5], ours, sigma.tolist(), strict=False):
        theirs = F.gaussian_blur(image.float() / 255, [2 * reach + 1] * 2, [s, s])
        torch.testing.assert_close(mine, theirs, atol=2.2 * photometrics.FAINT, rtol=0)
        close_to_bytes(mine, F.gaussian_blur(image, [2 * reach + 1] * 2, [s, s]), 0.5, 1.0)


def test_the_blurs_width_is_a_tenth_of_the_side_and_odd():
    widths = [2 * photometrics.radius(Crops(), side) + 1 for side in (224, 96, 64, 32, 8, 2, 1)]
    assert widths == [23, 9, 7, 3, 3, 3, 1]


SOME = {"blur_p": 0.3, "solarise_p": 0.2, "photometric_p": 0.0}


@pytest.mark.parametrize("settings", [MoCoV1(), MoCoV2(), SimCLRViews(), PirlViews(**SOME)])
def test_whole_chains_are_torchvisions(settings, apply):
    """All operations in each image's own order, against a loop over torchvision's on the same floats."""
    n = 60
    images = pictures(n, 3, 48, 48)
    draws = photometrics.draw(settings, 5, 1, np.arange(n), "one")
    reach = photometrics.radius(settings, 48)
    ours = apply(images, draws, reach)
    for i in range(n):
        first = draws.grey[i] and settings.kind == "moco_v1"
        x = F.pil_to_tensor(F.to_pil_image(images[i]).convert("L")).expand(3, -1, -1) if first else images[i]
        x = x.float() / 255
        for op in draws.order[i]:
            if op >= 0:
                x = list(OPS.values())[op](x, float(draws.factors[i, op]))
        x = F.rgb_to_grayscale(x, 3) if draws.grey[i] and not first else x
        s = float(draws.sigma[i])
        x = F.gaussian_blur(x, [2 * reach + 1] * 2, [s, s]) if s else x
        x = F.solarize(x, 0.5) if draws.solarise[i] else x
        if draws.solarise[i]:  # a value a rounding away from one half may fall on its other side
            away = (ours[i] - x).abs().minimum((ours[i] + x - 1).abs())
            assert away.max() < 1e-4
        else:  # the hue's slope is the inverse of a colour's range
            torch.testing.assert_close(ours[i], x, atol=1e-4, rtol=0)


# ---- the numbers drawn


def test_jitter_parameters_are_distributed_as_torchvisions():
    settings = MoCoV1(jitter=(0.4, 0.7, 1.3, 0.2))
    draws = photometrics.draw(settings, 0, 0, IDS, "one")
    for i, (low, high) in enumerate([(0.6, 1.4), (0.3, 1.7), (0.0, 2.3), (-0.2, 0.2)]):
        assert stats.kstest(draws.factors[:, i], "uniform", (low, high - low)).pvalue > 1e-4
    torch.manual_seed(0)
    jitter = v2.ColorJitter(0.4, 0.7, 1.3, 0.2)
    params = [jitter.make_params([]) for _ in range(5000)]
    for i, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        theirs = np.array([p[f"{name}_factor"] for p in params])
        assert stats.ks_2samp(draws.factors[:, i], theirs).pvalue > 1e-4
    both = np.corrcoef(np.c_[draws.factors, draws.order].T) - np.eye(8)
    assert np.abs(both[:4, 4:]).max() < 0.02 and np.abs(both[:4, :4]).max() < 0.02


def test_all_orders_of_the_jitter_come_equally_often():
    order = photometrics.draw(MoCoV1(), 0, 0, IDS, "one").order
    assert np.array_equal(np.sort(order, 1), np.tile(np.arange(4), (MANY, 1)))
    _, counts = np.unique(order, axis=0, return_counts=True)
    assert len(counts) == 24 and stats.chisquare(counts).pvalue > 1e-4


def test_probabilities():
    draws = photometrics.draw(MoCoV2(solarise_p=0.3), 0, 0, IDS, "one")
    seen = [(draws.order >= 0).any(1), draws.grey, draws.sigma > 0, draws.solarise]
    for share, p in zip(seen, (0.8, 0.2, 0.5, 0.3), strict=True):
        assert abs(share.mean() - p) < 5 * (p * (1 - p) / MANY) ** 0.5
    assert np.abs(np.corrcoef(np.array(seen)) - np.eye(4)).max() < 0.02
    assert stats.kstest(draws.sigma[draws.sigma > 0], "uniform", (0.1, 1.9)).pvalue > 1e-4


def test_a_strength_of_zero_is_no_operation():
    order = photometrics.draw(Crops(jitter=(0.4, 0, 0.4, 0), jitter_p=1), 0, 0, np.arange(100), "one").order
    assert set(order.ravel()) == {-1, 0, 2}


# ---- transforms


def finished(transform: transforms.ViewTransform, images: list[torch.Tensor], ids: np.ndarray, epoch: int = 3):
    params = transform.params(epoch, ids)
    cut = tuple(torch.empty(len(ids), *shape, dtype=torch.uint8) for shape in transform.crop_shapes)
    for i, image in enumerate(images):
        transform.crop(image, params, i, tuple(c[i] for c in cut))
    views = transform.views(cut, epoch, ids)
    assert [v.shape for v in views] == [(len(ids), *shape) for shape in transform.view_shapes]
    return views


@pytest.mark.parametrize("inputs", [Inputs(), Inputs(jigsaw=Jigsaw())], ids=["two", "jigsaw"])
def test_views_do_not_depend_on_batch_mates(inputs):
    images = [pictures(1, 3, 60 + i, 90 - i)[0] for i in range(7)]
    ids = np.array([4, 900, 17, 3, 12, 5, 10**9])
    transform = transforms.build(inputs, (MoCoV2(size=48),), PHOTO, 7)
    together = finished(transform, images, ids)
    for i in range(len(ids)):
        for whole, alone in zip(together, finished(transform, images[i : i + 1], ids[i : i + 1]), strict=True):
            assert torch.equal(whole[i], alone[0])
    other = finished(transform, images, ids, epoch=4)
    assert all((a - b).abs().mean() > 0.05 for a, b in zip(together, other, strict=True))


def test_two_views_differ():
    images = [pictures(1, 3, 60, 60)[0]] * 4
    one, two = finished(transforms.build(Inputs(), (MoCoV2(size=48),), PHOTO, 0), images, np.arange(4))
    assert one.shape == two.shape == (4, 3, 48, 48)
    assert (one - two).abs().mean((1, 2, 3)).min() > 0.05


@pytest.mark.parametrize("inputs", [Inputs(), Inputs(jigsaw=Jigsaw())], ids=["two", "jigsaw"])
@pytest.mark.parametrize(
    "pair",
    [
        (MoCoV2(size=48, blur_p=1.0), MoCoV2(size=48, blur_p=0.1, solarise_p=0.2, scale=(0.4, 0.5), flip=0.9)),
        (MoCoV1(size=48), SimCLRViews(size=48)),
        (Characters(size=48), Characters(size=48, rotation=90, elastic=1.0, contrast=(0.1, 0.2))),
    ],
    ids=["moco_v3", "kinds", "characters"],
)
def test_each_view_is_drawn_from_its_own_mapping(pair, inputs):
    """To the bit as beside another of the same mapping: neither knows of the other."""
    images, ids = list(pictures(6, 3, 48, 48)), np.arange(6)
    shared = [finished(transforms.build(inputs, (views,), PHOTO, 0), images, ids) for views in pair]
    made = finished(transforms.build(inputs, pair, PHOTO, 0), images, ids)
    assert torch.equal(made[0], shared[0][0]) and torch.equal(made[1], shared[1][1])
    assert not torch.equal(made[1], shared[0][1])


def test_small_crops_have_the_laws_of_the_first_view():
    """Beside a second view of another law: to the bit those beside two of the first's."""
    images, ids, small = list(pictures(6, 3, 60, 70)), np.arange(6), SmallCrops(count=3, size=16)
    first = MoCoV2(size=48, small=small, blur_p=1.0, flip=0.1)
    shared, made = (
        finished(transforms.build(Inputs(), views, PHOTO, 0), images, ids)
        for views in ((first,), (first, SimCLRViews(size=48)))
    )
    assert torch.equal(made[2], shared[2]) and not torch.equal(made[1], shared[1])


def test_small_crops_may_have_a_blur_of_their_own():
    """DINO's: to the bit those of a first view that is blurred as often, which itself stays as it was."""
    images, ids, small = list(pictures(4, 3, 60, 70)), np.arange(4), SmallCrops(count=3, size=16)
    first = ByolFirst(size=48, small=small)
    own = first.model_copy(update={"small": small.model_copy(update={"blur_p": 0.5})})
    plain, made, half = (
        finished(transforms.build(Inputs(), (views,), PHOTO, 0), images, ids)
        for views in (first, own, first.model_copy(update={"blur_p": 0.5}))
    )
    assert torch.equal(made[2], half[2]) and not torch.equal(made[2], plain[2])
    assert torch.equal(made[0], plain[0]) and torch.equal(made[1], plain[1])


@pytest.mark.parametrize("kind", [MoCoV2, Characters])
def test_more_views_leave_the_first_two_as_they_are(kind):
    images, ids, views = list(pictures(4, 3, 48, 48)), np.arange(4), kind(size=48)
    two, four = (finished(transforms.build(Inputs(), (views,) * n, PHOTO, 0), images, ids) for n in (2, 4))
    assert all(torch.equal(*pair) for pair in zip(two, four[:2], strict=True))
    assert all(not torch.equal(four[i], four[j]) for i in range(4) for j in range(i))


NOTHING = {"jitter_p": 0, "grey_p": 0, "blur_p": 0, "flip": 0, "photometric_p": 0}


@pytest.mark.parametrize(("side", "cell", "patch"), [(224, 85, 64), (32, 10, 8)])
def test_patches_are_cut_from_the_original(side, cell, patch):
    """Each of the nine lies in its own cell of one crop of the original, with a jitter over the whole slack."""
    image = pictures(1, 3, 300, 280)[0]
    n = 12
    transform = transforms.build(Inputs(jigsaw=Jigsaw()), (PirlViews(size=side, **NOTHING),), plain_image(3, side), 0)
    ids = np.arange(n)
    _, patches = finished(transform, [image] * n, ids)
    assert patches.shape == (n, 9, 3, patch, patch)
    params = jigsaw.draw(0, 3, ids, Jigsaw(), side, (3 / 4, 4 / 3), 0)
    order = params.order
    for i in range(n):
        crop = F.resized_crop(image, *params.within.box(i, 300, 280), [3 * cell, 3 * cell], antialias=True) / 255
        for shown, which in enumerate(order[i]):
            y, x = params.corners[i, which]
            assert which // 3 == y // cell and which % 3 == x // cell
            assert torch.equal(patches[i, shown], crop[:, y : y + patch, x : x + patch])


def test_patches_jitter_over_the_whole_slack_and_take_all_orders():
    corners = jigsaw.corners(0, 0, np.arange(20_000), 3, 85, 64)
    inside = corners % 85
    assert set(np.unique(inside)) == set(range(22))
    assert stats.chisquare(np.bincount(inside.ravel())).pvalue > 1e-4
    order = jigsaw.orders(0, 0, np.arange(20_000), 9)
    counts = np.array([np.bincount(order[:, i], minlength=9) for i in range(9)])
    assert stats.chisquare(counts.ravel()).pvalue > 1e-4
    assert len(np.unique(order, axis=0)) > 18_000  # of 362,880: no fixed set of a thousand


def test_patches_have_colours_and_flips_of_their_own():
    """Of one grey image, nine patches in several colours; of one with a bright left half, some mirrored."""
    transform = transforms.build(Inputs(jigsaw=Jigsaw()), (PirlViews(size=32, grey_p=0),), plain_image(3, 32), 0)
    _, patches = finished(transform, [torch.full((3, 40, 40), 99, dtype=torch.uint8)] * 20, np.arange(20))
    assert patches.mean((2, 3, 4)).std(1).min() > 0.02
    flips = jigsaw.draw(0, 0, np.arange(300), Jigsaw(), 32, (3 / 4, 4 / 3), 0.5).flips
    assert flips.shape == (300, 9) and abs(flips.mean() - 0.5) < 0.05
    assert (flips.std(1) > 0).mean() > 0.98


@pytest.mark.parametrize("channels", [1, 3])
def test_sides_and_statistics(channels):
    image = Image(channels, 24, (0.4,) * channels, (0.2,) * channels)
    transform = transforms.build(Inputs(), (MoCoV2(size=24, **NOTHING),), image, 0)
    (one, _) = finished(transform, [torch.full((channels, 50, 40), 102, dtype=torch.uint8)] * 2, np.arange(2))
    assert one.shape == (2, channels, 24, 24)
    torch.testing.assert_close(one, torch.zeros_like(one), atol=1e-5, rtol=0)
