"""Sheets: where cells, frames and words lie, of images small and large, grey and coloured."""

import numpy as np
import pytest
import torch
from PIL import ImageColor

from pipeline import sheets
from pipeline.data.loader import MicroBatch
from pipeline.data.shards import Shards
from pipeline.objectives import latents
from pipeline.settings.data import Characters
from pipeline.settings.nets import CNN
from pipeline.settings.stages import Pretrain
from pipeline.sheets import Frame, Picture, Text
from pipeline.stages import pretrain
from pipeline.world import World

GREY = np.full((10, 20, 3), 128, np.uint8)


def noise(n: int, channels: int, side: int) -> torch.Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("side", "shown"), [(4, 64), (8, 64), (28, 56), (32, 64), (64, 64), (96, 48), (224, 56)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_scaled_by_whole_factors(channels, side, shown):
    batch = noise(3, channels, side)
    found = sheets.images(batch)
    assert len(found) == 3 and all(one.shape == (shown, shown, 3) and one.dtype == np.uint8 for one in found)
    if shown >= side:
        zoom = shown // side
        pixels = (batch * 255).round().byte().permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
        assert all((one[i::zoom, j::zoom] == pixel).all() for one, pixel in zip(found, pixels, strict=True)
                   for i in range(zoom) for j in range(zoom))  # fmt: skip
    else:
        assert abs(found[0].mean() - 255 * float(batch[0].mean())) < 2


def test_values_beyond_black_and_white_are_cut():
    low, high = sheets.images(torch.stack([torch.full((1, 8, 8), -3.0), torch.full((1, 8, 8), 7.0)]))
    assert (low == 0).all() and (high == 255).all()


def test_a_tile_lies_in_reading_order_on_white():
    batch = torch.linspace(0, 0.9, 5)[:, None, None, None].expand(5, 3, 32, 32)
    page = sheets.tile(batch, columns=3)
    assert page.shape == (2 * 64 + 2, 3 * 64 + 4, 3)
    for i, value in enumerate(np.round(255 * np.linspace(0, 0.9, 5))):
        y, x = 66 * (i // 3), 66 * (i % 3)
        assert (page[y : y + 64, x : x + 64] == value).all()
    assert (page[66:, 132:] == 255).all() and (page[64:66] == 255).all()


def test_cells_of_any_size_lie_in_the_middle_of_their_place():
    small = np.zeros((4, 6, 3), np.uint8)
    page = sheets.sheet([[GREY, small], [small, GREY]], gap=2)
    assert page.shape == (22, 42, 3)
    assert (page[3:7, 29:35] == 0).all() and (page[15:19, 7:13] == 0).all()
    assert (page == 0).all(-1).sum() == 2 * 24 and (page == 128).all(-1).sum() == 2 * 200


def test_frames_go_around_their_cells_and_leave_them_whole():
    colour = ImageColor.getrgb(sheets.WRONG)
    page = sheets.sheet([[GREY] * 3] * 2, frames=[Frame((0, 1), (1, 2), sheets.WRONG)])
    assert (page == 128).all(-1).sum() == 6 * 200
    y, x = np.nonzero((page == colour).all(-1))
    whole = (2 * 20 + 10 + 2 * sheets.BORDER, 2 * 10 + 10 + 2 * sheets.BORDER)
    assert (np.ptp(x) + 1, np.ptp(y) + 1) == whole
    inside = (2 * 20 + 10) * (2 * 10 + 10)
    assert len(x) == whole[0] * whole[1] - inside


def test_words_lie_beside_the_cells_and_end_where_there_is_no_room():
    plain = sheets.sheet([[GREY] * 3] * 2)
    page = sheets.sheet([[GREY] * 3] * 2, [["a", "", "b"], []], ["x", "y", "z"], ["first", "second"])
    assert page.shape[0] > plain.shape[0] and page.shape[1] > plain.shape[1]
    assert (page == 128).all(-1).sum() >= 6 * 200  # no word lies on a cell
    assert sheets.shorten("cat", 100) == "cat"
    short = sheets.shorten("a long name of a class", 60)
    assert short.endswith("…") and sheets.width_of(short, sheets.NAME) <= 60
    assert sheets.shorten("cat", 3) == "…"


def test_a_caption_has_lines_as_wide_as_its_sheet_and_leaves_the_pixels():
    words = "word " * 60 + "w" * 500
    for width in (100, 480, 900):
        lines = sheets.wrap(words, width)
        assert all(sheets.width_of(line, sheets.CAPTION) <= width for line in lines)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 700, 3), dtype=np.uint8)
    page = sheets.captioned(Picture(pixels, words), 1650)
    assert page.shape[1] == 716 and (page[-38:-8, 8:708] == pixels).all()
    assert (page == sheets.captioned(Picture(pixels, words), 1650)).all()
    assert (page != sheets.captioned(Picture(pixels, words), 1651)).any()
    assert sheets.captioned(Picture(GREY, "short"), 0).shape[1] == sheets.WIDTH


def test_letters_of_no_font_are_written_by_number():
    assert sheets.face("a")[0] == "a" and sheets.face("✓")[0] == "✓"
    private = chr(0xF0001)
    assert "".join(words for words, _, _ in sheets.runs(f"a{private}b", 12)) == "aU+F0001b"
    page = np.full((40, 200, 3), 255, np.uint8)
    assert (sheets.write(page, [Text(100, 20, private)]) == sheets.write(page, [Text(100, 20, "U+F0001")])).all()


@pytest.mark.parametrize("count", [1, 2, 10, 20, 1000])
def test_classes_have_colours_of_their_own(count):
    found = sheets.colours(count)
    assert found.shape == (count, 3) and found.min() >= 0 and found.max() <= 1
    assert len(np.unique(np.round(255 * found), axis=0)) > 0.8 * count


# ----------------------------------------------------------------------------------------------- what is drawn on them
@pytest.mark.parametrize("kind", ["moco", "pirl", "vae"])
def test_views_stand_beside_their_images_and_pairs_are_framed(digits, kind):
    objective = {"moco": {"queue": 64}, "pirl": {"negatives": 0, "loss": "infonce"}, "vae": {}}[kind]
    views = {} if kind == "vae" else {"views": Characters()}
    settings = Pretrain(data="digits", objective={"kind": kind, **objective}, net=CNN(), batch=16, epochs=1, **views)
    shards = Shards.open(digits, "train")
    objective, setup, loader = pretrain.prepare(settings, 0, shards, World.single(device="cpu"), None)
    _, _, (batch, *_) = next(iter(loader.steps(0)))
    loader.close()
    drawn, caption = pretrain.views(settings, 0, shards, setup.image, batch)
    marked = (drawn == ImageColor.getrgb(sheets.MARKED)).all(-1).any()
    assert marked == (kind != "vae") and kind in caption and "digits" in caption
    assert ("Patches" in caption) == (kind == "pirl")
    again = pretrain.views(settings, 0, shards, setup.image, MicroBatch(batch.views, batch.ids))
    assert (drawn == again.pixels).all()


def test_patches_of_a_jigsaw_lie_in_their_places():
    """Patch k, shown as the k-th, is of place order[k], and as grey as its place."""
    order = np.array([2, 0, 3, 1])
    patches = torch.from_numpy(order / 10)[:, None, None, None].expand(4, 1, 6, 6)
    cell = pretrain.puzzle(patches, order)
    greys = [cell[y, x, 0] for y in (5, cell.shape[0] // 2 + 8) for x in (5, cell.shape[1] // 2 + 8)]
    assert greys == [round(25.5 * place) for place in range(4)]


@pytest.mark.parametrize("classes", [["a"], [str(i) for i in range(30)], ["", "猫"]])
@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 64)])
def test_pictures_of_latents(classes, channels, side):
    images, names = noise(17, channels, side), (classes * 17)[:17]
    made = latents.reconstructions(images, 0.5 * images, torch.arange(40) / 100)
    assert "over 40 images it is 0.1950" in made.caption
    whole = latents.interpolations(images[:16], noise(80, channels, side), names)
    mean, deviation = torch.linspace(-5, 5, 34).view(17, 2), torch.full((17, 2), 0.3)
    cloud = latents.ellipses(mean, deviation, names)
    plane = latents.plane(noise(9, channels, side), torch.tensor([-1.0, 0, 1]))
    for picture in (made, whole, cloud, plane):
        assert picture.pixels.dtype == np.uint8 and picture.pixels.shape[2] == 3 and picture.pixels.std() > 5
        assert max(picture.pixels.shape) < 1500 and picture.caption.endswith(".")
    assert (cloud.pixels == latents.ellipses(mean, deviation, names).pixels).all()
