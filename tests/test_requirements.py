"""What a probe requires of its shards is judged before anything is trained, by the numbers that it will itself use."""

from typing import Any

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.evaluation import linear
from pipeline.evaluation.requirements import check
from pipeline.settings.data import Splits
from pipeline.settings.stages import Pack, Probe
from pipeline.stages import pack
from tests.fuzz_layouts import formats

PROBE: dict[str, Any] = {"kind": "probe", "data": "shards", "encoders": ("moco",)}


@pytest.fixture
def shards(tmp_path, world):
    """Packs so many images of each class of each split -> their folder."""

    def make(**splits: dict[str, int]):
        for split, classes in splits.items():
            for name, count in classes.items():
                folder = tmp_path / "in" / split / name
                folder.mkdir(parents=True)
                for i in range(count):
                    (folder / f"{i}.png").write_bytes(formats()["png"])
        out = tmp_path / "out"
        out.mkdir()
        settings = Pack(source=f"folder:{tmp_path / 'in'}", splits=Splits(train="train", test="test"))
        pack.run(settings, 0, {}, out, world)
        return out

    return make


def test_enough_of_everything_says_nothing(shards):
    assert check(Probe(**PROBE), shards(train={"a": 13, "b": 20}, test={"a": 2, "b": 1})) == []


@pytest.mark.parametrize("count", [3, 6, 11, 12, 13])
def test_images_a_class_as_the_probe_will_count_them(shards, count):
    """It is refused here where, and only where, the probe's own draw would be, days later."""
    folder = shards(train={"a": 40, "b": count}, test={"a": 2, "b": 1})
    settings = Probe(**PROBE, per_class=10)
    labels = np.repeat([0, 1], [40, count])
    try:
        linear.draw(labels, linear.split(labels, settings.validation, 0).fit, settings.per_class, 0, 0)
    except DataError:
        with pytest.raises(DataError, match=rf"b has {count}, of which (\d+) are not held out.*lower per_class to \1"):
            check(settings, folder)
    else:
        assert count > 11 and check(settings, folder) == []


def test_too_few_to_validate(shards):
    folder = shards(train={"a": 2, "b": 2}, test={"a": 2, "b": 1})
    with pytest.raises(DataError, match="the largest has 2"):
        check(Probe(**PROBE, per_class=1), folder)
    labels = np.array([0, 0, 1, 1])
    with pytest.raises(DataError, match="too few"):
        linear.split(labels, 0.2, 0)


def test_classes_of_the_test_split(shards):
    folder = shards(train={"a": 20, "b": 20, "c": 20}, test={"a": 3, "x": 1})
    assert check(Probe(**PROBE), folder) == [
        "1 of 4 test images are of classes never trained on (x): all wrong",
        "2 classes without a test image: b, c",
    ]


def test_no_class_in_both(shards):
    folder = shards(train={"a": 20, "b": 20}, test={"x": 3})
    with pytest.raises(DataError, match=r"no class of the test split \(x\) is in the training split"):
        check(Probe(**PROBE), folder)


@pytest.mark.parametrize(
    ("where", "share", "words"),
    [("", 0.5, "of the training split have no label"), ("a", 0.0, "the test split is empty")],
)
def test_no_labels_and_no_test(tmp_path, world, where, share, words):
    folder = tmp_path / "in" / where
    folder.mkdir(parents=True)
    for i in range(12):
        (folder / f"{i}.png").write_bytes(formats()["png"])
    out = tmp_path / "shards-1"
    out.mkdir()
    pack.run(Pack(source=f"folder:{tmp_path / 'in'}", test=share), 0, {}, out, world)
    with pytest.raises(DataError, match=words):
        check(Probe(**PROBE), out)
