"""What is said of a training before it costs hours, and what is refused."""

import pytest

from pipeline import advice, cli
from pipeline.errors import ConfigError
from pipeline.settings.objectives import VAE
from pipeline.settings.stages import Pretrain

MOCO = {"data": "shards", "batch": 64, "epochs": 4, "objective": {"kind": "moco", "queue": 1024}}


def said(images: int, side: int | None = None, **changes) -> list[str]:
    return advice.training("moco", Pretrain.model_validate(MOCO | changes), images, side)


def test_nothing_is_said_of_what_is_usual():
    assert said(1600, 32, views={"kind": "moco_v2", "size": 32}) == []
    assert advice.training("vae", Pretrain(data="shards", objective=VAE(), batch=64), 1600, 8) == []


def test_a_queue_of_more_than_the_images():
    (line,) = said(1600, objective={"kind": "moco", "queue": 65536})
    assert line.startswith("queue 65,536 is 41 times the 1,600 images: the loss rises until it is full, after")
    assert "1,024 steps, which these 100 do not reach" in line and "at most 1,600 is usual" in line
    (line,) = said(1600, objective={"kind": "moco", "queue": 2048, "symmetric": True}, epochs=4)
    assert "1.3 times" in line and "after 16 steps, and" in line  # two keys an image
    assert said(1600, objective={"kind": "moco", "queue": 1600}) == []


@pytest.mark.parametrize(
    ("images", "changes", "words"),
    [
        (1500, {"train_examples": 2000}, "train_examples 2,000: there are 1,500"),
        (1100, {"batch": 600}, "an epoch is 1 step and leaves out 500 of them, others each time; a batch of 550 or"),
        (1600, {"steps": 10}, "steps 10 of 25 an epoch: 960 images are never seen"),
        (1600, {"warmup_epochs": 4}, "warmup_epochs 4 are 100 steps of 100: the learning rate never reaches its peak"),
    ],
)
def test_what_runs_otherwise_than_its_reader_may_think(images, changes, words):
    (line,) = said(images, **changes)
    assert words in line


def test_images_that_are_enlarged():
    views = {"kind": "moco_v2", "size": 224}
    assert "enlarged 7 times" in said(1600, 32, views=views)[0]
    assert said(1600, 112, views=views) == said(1600, None, views=views) == []


def test_a_batch_of_more_than_the_images_is_refused():
    with pytest.raises(ConfigError, match="moco: batch 64 of 63 images to train on: make it at most 63"):
        said(63)


def test_what_does_not_go_with_the_images_is_refused():
    with pytest.raises(ConfigError, match=r"^moco.net.patch: 16 does not divide views of 40 pixels"):
        said(1600, 40, net={"kind": "vit"})
    with pytest.raises(ConfigError, match=r"moco.objective.jigsaw.patch: 12 is more than a cell's 5 pixels"):
        said(1600, 8, objective={"kind": "pirl", "jigsaw": {"patch": 12}})
    assert said(1600, 64, net={"kind": "vit"}, objective={"kind": "moco", "queue": 64}) == []


CONFIG = """\
stages:
  shards: {kind: pack, source: digits}
  moco: {kind: pretrain, data: shards, batch: 64, objective: {kind: moco, queue: 65536}, views: {kind: characters}}
"""


def test_the_dry_run_says_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(CONFIG)
    assert cli.main(["run", "c.yaml", "--dry-run", "--here"]) == 0
    assert "moco: queue 65,536 is 46 times the 1,438 images" in capsys.readouterr().out
    assert cli.main(["run", "c.yaml", "--dry-run", "--here", "moco.batch=2000"]) == 2
    told = capsys.readouterr()
    assert told.err == "moco: batch 2000 of 1,438 images to train on: make it at most 1438, or pack more\n"
    assert not (tmp_path / "runs").exists()


def test_the_start_says_it_before_anything_is_trained(tmp_path, monkeypatch, capsys):
    """Also of a stage that has another before it; a batch that is refused costs no training."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(CONFIG + CONFIG.splitlines()[-1].replace("moco:", "second:", 1) + "\n")
    words = ["run", "c.yaml", "--here", "moco.steps=1", "second.steps=1"]
    assert cli.main([*words, "second.batch=2000"]) == 2
    told = capsys.readouterr()
    assert "second: batch 2000 of 1,438 images" in told.err and told.err.count("\n") == 1
    assert "moco: queue 65,536 is 46 times" in told.out and "moco: starts" not in told.out
    assert [p.name[:6] for p in (tmp_path / "runs").iterdir()] == ["shards"]


def test_the_dry_run_judges_a_probe_of_shards_that_are_there(tmp_path, monkeypatch, capsys):
    from tests.test_pack import tree

    monkeypatch.chdir(tmp_path)
    tree(tmp_path / "flat", [f"{i}.png" for i in range(20)])
    (tmp_path / "c.yaml").write_text(CONFIG + "  probe: {kind: probe, data: shards, encoders: [moco]}\n")
    words = ["run", "c.yaml", "--here", "shards.source=folder:flat", "moco.batch=4"]
    assert cli.main([*words, "--dry-run"]) == 0
    assert cli.main([*words, "--only", "shards"]) == 0
    assert cli.main([*words, "--dry-run"]) == 65
    assert "have no label" in capsys.readouterr().err


def test_one_class_and_more_neighbours_than_images_are_said(tmp_path, monkeypatch, capsys):
    from tests.test_pack import tree

    monkeypatch.chdir(tmp_path)
    tree(tmp_path / "one", [f"a/{i}.png" for i in range(25)])
    (tmp_path / "c.yaml").write_text(CONFIG + "  probe: {kind: probe, data: shards, encoders: [moco]}\n")
    words = ["run", "c.yaml", "--here", "shards.source=folder:one", "moco.batch=4", "probe.neighbours=50"]
    assert cli.main([*words, "--only", "shards"]) == 0
    assert cli.main([*words, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "probe: one class alone (a): whatever an encoder does, every answer is right" in told
    assert "probe: neighbours 50 of 18 training images: all of them vote" in told
    assert cli.main([*words[:-1], "probe.neighbours=18", "--dry-run"]) == 0
    assert "neighbours" not in capsys.readouterr().out
