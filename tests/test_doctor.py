"""What limits a training is said, with one thing to change; what is odd about shards, too."""

import numpy as np
import pytest

from pipeline import bottleneck, cli, diagnosis
from pipeline.data.shards import Shards
from pipeline.settings.data import MoCoV2
from pipeline.settings.nets import CNN
from pipeline.settings.stages import Pretrain
from tests import small

FED = {"read": 1e-4, "decode": 3e-4, "crop": 1e-4}


def found(**changes) -> diagnosis.Examination:
    settled = {"stages": FED, "step": 1e-3, "threads": 1, "side": 32.0, "neighbours": 0.1, "chance": 0.1}
    return diagnosis.Examination(**(settled | changes))


def test_the_command_measures_and_says_what_limits(tmp_path, capsys):
    config = small.write(tmp_path / "runs")
    assert cli.main(["doctor", str(config)]) == 0
    said = capsys.readouterr().out
    assert "moco: fed by" in said and "augment" in said and "the model's step" in said
    assert "the model limits it" in said or "threads" in said
    assert not list((tmp_path / "runs").glob("moco-*"))  # it only looked
    assert cli.main(["doctor", str(config), "moco.epoch=3"]) == 2


def test_advice(digits):
    shards = Shards.open(digits)
    settings = Pretrain(data="shards", net=CNN(), views=(MoCoV2(size=32),))
    limit, odd = diagnosis.advice(settings, found(), shards, 32)
    assert limit.startswith("the model limits") and odd == []
    limit, odd = diagnosis.advice(settings, found(step=1e-4), shards, 32)
    assert "the feed limits it, decode most: threads 5 would" in limit and "short_side" not in limit
    limit, odd = diagnosis.advice(settings, found(step=1e-4, side=500.0), shards, 32)
    assert "short_side 36" in limit and "images of 500 pixels" in odd[0]
    (sorted_,) = diagnosis.advice(settings, found(neighbours=0.99), shards, 32)[1]
    assert "sorted by class (99%" in sorted_
    narrow = settings.model_copy(update={"window": 1})
    assert any("window 1 of" in line for line in diagnosis.advice(narrow, found(), shards, 32)[1])
    assert any("for 64 processes" in line for line in diagnosis.advice(settings, found(), shards, 32, 64)[1])


def test_a_logged_training_is_limited_by_what_it_waited_for():
    fed = [{"speed/images_per_s": 100.0, "speed/wait": wait, "speed/decode": 0.9} for wait in (0.5, 0.6, 9.0)]
    rows = [{"step": 1.0}, *fed]
    speed = bottleneck.logged(rows, batch=100, threads=1)
    assert speed is not None and speed.wait == pytest.approx(0.6) and speed.step == pytest.approx(4e-3)
    assert bottleneck.limit(speed, 32).startswith("the feed limits it, decode most: threads 3 would")
    idle = bottleneck.logged([{"speed/images_per_s": 100.0, "speed/wait": 0.01, "speed/crop": 2.0}], 100, 1)
    assert idle is not None and bottleneck.limit(idle, 32).startswith("the model limits it")
    assert bottleneck.logged([{"speed/bad": 0.0}], 100, 1) is None


@pytest.mark.parametrize("name", ["digits"])
def test_neighbours_of_packed_images_are_those_of_a_random_order(name, request, world):
    folder = request.getfixturevalue(name)
    shards = Shards.open(folder)
    settings = Pretrain(data="shards", net=CNN(width=8, depth=2), views={"kind": "characters"}, batch=64)  # type: ignore[arg-type]
    seen = diagnosis.examine(settings, 0, folder, world)
    assert abs(seen.neighbours - seen.chance) < 0.05 and seen.side == 8 and seen.step > 0
    assert np.isclose(seen.cores, sum(seen.stages.values()) / seen.step)
    assert shards.n == 1438
