"""Figures without their data say which command brings them; the command does."""

from pathlib import Path

import pytest
from PIL import Image

from benchmarks import __main__ as bench
from benchmarks import data


@pytest.mark.parametrize("figure", ["crops_32", "crops_224", "moco_views_32", "feed_224", "read_32", "shard_size"])
def test_a_figure_without_its_data_says_what_brings_them(figure, tmp_path, monkeypatch, capsys):
    pytest.importorskip("webdataset")
    monkeypatch.chdir(tmp_path)
    assert bench.main([figure]) == 65
    name = "imagenet-sample" if "224" in figure else "cifar10"
    told = capsys.readouterr()
    assert f"`python -m benchmarks.data {name}` brings it" in told.err and told.out == ""
    assert not list(tmp_path.iterdir())


def test_the_command_writes_class_folders(tmp_path, monkeypatch, capsys):
    class Set:
        classes = ["0 - zero", "1 - one"]

        def __init__(self, root, train, download):
            self.rows = [(Image.new("L", (28, 28), i), i % 2) for i in range(4 if train else 2)]

        def __iter__(self):
            return iter(self.rows)

    monkeypatch.setattr("torchvision.datasets.MNIST", Set)
    monkeypatch.chdir(tmp_path)
    assert data.main(["minst"]) == 2 and "expected some of cifar10, mnist" in capsys.readouterr().err
    assert data.main(["mnist"]) == 0 and data.main(["mnist"]) == 0
    assert capsys.readouterr().out == "data/mnist: downloaded\ndata/mnist: there\n"
    assert sorted(str(p.relative_to(data.need("mnist"))) for p in Path("data/mnist").rglob("*.png")) == [
        "test/0/00000.png", "test/1/00001.png",
        "train/0/00000.png", "train/0/00002.png", "train/1/00001.png", "train/1/00003.png",
    ]  # fmt: skip
