"""What is shown: files that a killed and resumed run leaves as an undisturbed one does, and pages that keep all."""

import json
import random

import numpy as np
import pytest
import torch

from pipeline.board import POINTS, Board, mosaic
from pipeline.sheets import Picture
from pipeline.tags import describe


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    found.Reload()
    return found


def scalars(folder, tag):
    """(step, value) of a tag's points."""
    return [(p.step, float(p.tensor_proto.float_val[0])) for p in events(folder).Tensors(tag)]


def log(board: Board, steps) -> None:
    for step in steps:
        board.scalars(step, {"learn/loss": 1 / step, "energy/low": -step / 3})
        board.timings(step, {"speed/wait": 0.1 * step})


def test_no_folder_says_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    board = Board(None)
    log(board, [1, 2])
    board.image("a/b", 0, Picture(np.zeros((4, 4, 3), np.uint8), "words"))
    board.histogram("h", 0, np.zeros(3))
    board.text("t", "words")
    board.embedding("e", torch.zeros(2, 3), ["a", "b"], torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
    board.flush()
    board.close()
    assert list(tmp_path.iterdir()) == []


def test_rows_are_sorted_and_exact(tmp_path):
    board = Board(tmp_path)
    board.scalars(3, {"b": 0.1 + 0.2, "a": torch.tensor(1.0).item()})
    board.close()
    line = (tmp_path / "metrics.jsonl").read_text()
    assert line == '{"step": 3, "a": 1.0, "b": 0.30000000000000004}\n'
    assert board.last == {"a": 1.0, "b": 0.1 + 0.2}


@pytest.mark.parametrize("seed", range(15))
def test_killed_and_resumed_leaves_the_same_bytes(tmp_path, seed):
    """Killed after any rows past the checkpoint were written, the last of them torn at any byte, again and again."""
    whole, killed, draw = tmp_path / "whole", tmp_path / "killed", random.Random(seed)
    log(Board(whole), range(1, 13))
    saved = 0
    while saved < 12:
        board = Board(killed, saved)
        ahead = draw.randint(saved + 1, 12)
        log(board, range(saved + 1, ahead + 1))
        board.close()
        saved = draw.choice([saved, ahead - 1, ahead])  # the checkpoint may be older than the last row, or as old
        for name in ("metrics.jsonl", "timings.jsonl"):
            body = (killed / name).read_bytes()
            end = body.rstrip(b"\n").rfind(b"\n") + 1
            (killed / name).write_bytes(body if saved == ahead else body[: draw.randint(end, len(body))])
    for name in ("metrics.jsonl", "timings.jsonl"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_the_last_row_is_known_after_a_restart(tmp_path):
    log(Board(tmp_path), [1, 2, 3])
    assert Board(tmp_path, 2).last == {"learn/loss": 0.5, "energy/low": -2 / 3}
    assert Board(tmp_path, -1).last == {}


def test_steps_after_the_restored_one_are_hidden(tmp_path):
    first = Board(tmp_path)
    log(first, range(1, 8))
    first.close()
    second = Board(tmp_path, 4)
    second.scalars(5, {"learn/loss": 50.0})
    second.close()
    points = scalars(tmp_path, "learn/loss")
    assert [step for step, _ in points] == [1, 2, 3, 4, 5]
    assert points[-1][1] == 50.0


def test_a_run_that_starts_over_hides_step_zero(tmp_path):
    for value in (1.0, 2.0):
        board = Board(tmp_path, -1)
        board.scalars(0, {"learn/loss": value})
        board.close()
    assert scalars(tmp_path, "learn/loss") == [(0, 2.0)]
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1


def test_scalars_can_be_rebuilt_from_the_files(tmp_path):
    board = Board(tmp_path)
    log(board, range(1, 30))
    board.close()
    for name in ("metrics.jsonl", "timings.jsonl"):
        rows = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for tag in rows[0].keys() - {"step"}:
            expected = [(r["step"], np.float32(r[tag])) for r in rows]
            assert scalars(tmp_path, tag) == expected


def test_everything_is_found_in_tensorboard(tmp_path):
    board = Board(tmp_path)
    log(board, [1])
    board.image("views", 0, Picture(np.full((5, 7, 3), 128, np.uint8), "grey"))
    board.histogram("codes/usage", 0, np.arange(10.0))
    board.text("protocol", "how")
    board.close()
    found = events(tmp_path)
    for plugin, tags in {
        "scalars": {"learn/loss", "energy/low", "speed/wait"}, "images": {"views"}, "histograms": {"codes/usage"},
        "text": {"protocol"},
    }.items():  # fmt: skip
        assert set(found.PluginTagToContent(plugin)) == tags
        for tag in tags:
            assert found.SummaryMetadata(tag).summary_description == describe(tag)
    assert len(list(tmp_path.glob("events.*"))) == 1


def test_a_picture_is_a_file_too_with_its_caption_and_step(tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (6, 500, 3), dtype=np.uint8)
    board = Board(tmp_path)
    board.image("a/b", 0, Picture(np.zeros((6, 9, 3), np.uint8), "none"))
    board.image("a/b", 1234, Picture(pixels, "Ways to 猫, in words."))
    board.close()
    path = tmp_path / "sheets" / "a-b.png"
    found = Image.open(path)
    assert found.text == {"Description": "Ways to 猫, in words."}
    page = np.asarray(found)
    assert (page[-14:-8, 8:508] == pixels).all() and (page[-8:] == 255).all() and page[:-14].min() < 100
    before = path.read_bytes()
    again = Board(tmp_path)
    again.image("a/b", 1234, Picture(pixels, "Ways to 猫, in words."))
    again.close()
    assert path.read_bytes() == before


def points(n: int, seed: int = 0):
    draw = torch.Generator().manual_seed(seed)
    pictures = torch.randint(0, 256, (n, 1, 4, 4), generator=draw, dtype=torch.uint8)
    return torch.randn(n, 3, generator=draw), [f"class {i}" for i in range(n)], pictures


def test_a_second_writer_keeps_the_first_ones_embeddings(tmp_path):
    from google.protobuf import text_format
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

    for tag in ("first", "second/deep", "first"):
        board = Board(tmp_path, 1)
        board.embedding(tag, *points(7))
        board.close()
    config = text_format.Parse((tmp_path / "projector_config.pbtxt").read_text(), ProjectorConfig())
    assert sorted(e.tensor_name for e in config.embeddings) == ["first", "second/deep"]
    for one in config.embeddings:
        assert list(one.tensor_shape) == [7, 3]
        table = np.loadtxt(tmp_path / one.tensor_path, delimiter="\t")
        assert np.allclose(table, points(7)[0].numpy(), rtol=1e-5)
        assert (tmp_path / one.metadata_path).read_text().splitlines() == points(7)[1]
        assert (tmp_path / one.sprite.image_path).exists()


def test_a_projector_holds_no_more_than_it_can_show(tmp_path):
    board = Board(tmp_path)
    n = POINTS + 3
    board.embedding("e", torch.zeros(n, 2), ["x"] * n, torch.zeros(n, 1, 2, 2, dtype=torch.uint8))
    board.close()
    for name in ("points.tsv", "labels.tsv"):
        assert len((tmp_path / "projector" / "e" / name).read_text().splitlines()) == POINTS


def test_sprites_lie_in_reading_order_each_framed_in_the_colour_of_its_label():
    _, _, pictures = points(7)
    sheet, side = mosaic(pictures, ["a", "b", "a", "a", "b", "c", "a"])
    assert side == 32 and sheet.shape == (96, 96, 3)
    tiles = [sheet[y : y + side, x : x + side] for y in range(0, 96, 32) for x in range(0, 96, 32)]
    for shown, one in zip(tiles, pictures, strict=False):
        large = one.repeat_interleave(6, 1).repeat_interleave(6, 2).permute(1, 2, 0).numpy()
        assert (shown[4:-4, 4:-4] == large).all()
        assert (shown[:4] == shown[0, 0]).all() and (shown[:, -4:] == shown[0, 0]).all()
    corners = [tuple(shown[0, 0].tolist()) for shown in tiles]
    assert corners[0] == corners[2] == corners[6] != corners[1] == corners[4] != corners[5] != corners[0]
    assert (sheet[64:, 32:] == 255).all()
    big, side = mosaic(torch.full((4, 3, 200, 100), 9, dtype=torch.uint8), ["x"] * 4)
    assert side == 48 and big.shape == (2 * side, 2 * side, 3) and (big[6:42, 6:42] == 9).all()
