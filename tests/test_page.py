"""The page of a config: one folder for one set of stages, and in it a run for each encoder."""

import json
from base64 import b64decode
from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline import logs, page, tags
from pipeline.board import Board
from pipeline.plan import PlannedStage
from pipeline.settings.stages import Generate, Pack, Pretrain, Probe


def test_a_page_is_known_by_its_stages(tmp_path):
    first = page.folder(tmp_path, "quickstart", ["b" * 64, "a" * 64, "a" * 64])
    assert first == page.folder(tmp_path, "quickstart", ["a" * 64, "b" * 64])
    assert first.parent == tmp_path / "pages" and first.name.startswith("quickstart-") and len(first.name) == 19
    assert first != page.folder(tmp_path, "quickstart", ["a" * 64])


def stage(root, name, settings, key, seed=0):
    return PlannedStage(
        name, settings.kind, settings, seed, key, root / f"{name}-{key}", {}, {}, "here", True, {}
    )  # fmt: skip


def variant(root, seed):
    """What a config plans of one seed; the shards are the same of all."""
    mine = f"{seed}" * 8
    return [
        stage(root, "shards", Pack(), "a" * 8, seed),
        stage(root, "moco", Pretrain(data="shards"), "b" + mine, seed),
        stage(root, "vae", Pretrain(data="shards", objective={"kind": "vae"}), "c" + mine, seed),
        stage(root, "drawn", Generate(data="shards", model="vae"), "d" + mine, seed),
        stage(root, "probe", Probe(data="shards", encoders=("moco", "vae")), "e" + mine, seed),
    ]


def written(folder, tag, value=0.5, step=3):
    board = Board(folder, step)
    board.scalars(step, {tag: value})
    board.close()


@pytest.fixture
def sweep(tmp_path):
    """Two seeds that have logged a little."""
    variants = {f"seed={seed}": variant(tmp_path, seed) for seed in (0, 1)}
    for group in variants.values():
        _, moco, vae, drawn, probe = (p.folder for p in group)
        written(moco, "learn/accuracy")
        written(moco, "learn/loss", step=9)
        written(vae, "vae/elbo")
        written(drawn, "energy/test")
        written(probe, "speed/bad", 0.0)
        for row in ("moco", "vae", "raw_pixels"):
            written(probe / row, "accuracy/linear_few")
    return variants


def tags_of(run) -> set[str]:
    found = EventAccumulator(str(run))
    found.Reload()
    return set(found.PluginTagToContent("scalars"))


def test_a_run_is_an_encoder_with_all_that_is_known_of_it(sweep, tmp_path):
    made = logs.Logs(tmp_path, "two")
    made.refresh(sweep)
    out = made.folder(sweep)
    each = {"moco", "vae", "probe", "raw_pixels"}
    assert {p.name for p in out.iterdir()} == {f"{n} seed={s}" for n in each for s in (0, 1)} | {
        "two", "healthy", "collapsed"
    }  # fmt: skip
    assert tags_of(out / "moco seed=1") == {"learn/accuracy", "learn/loss", "accuracy/linear_few"}
    assert tags_of(out / "vae seed=0") == {"vae/elbo", "energy/test", "accuracy/linear_few"}


def test_links_follow_what_is_written_and_removed(sweep, tmp_path):
    made = logs.Logs(tmp_path, "two")
    made.refresh(sweep)
    moco = sweep["seed=0"][1].folder
    before = {p.name for p in moco.glob("events*")}
    written(moco, "learn/lr")  # another start: its file takes the place of the first
    made.refresh(sweep)
    run = made.folder(sweep) / "moco seed=0"
    names = {p.name for p in run.iterdir()}
    assert all(p.exists() for p in run.iterdir()) and not before & names
    assert {p.name for p in moco.glob("events*")} <= names


def test_one_run_is_shown_under_its_stages_names(sweep, tmp_path):
    alone = {"": sweep["seed=0"]}
    assert set(logs.sources(alone)) >= {"moco", "vae", "raw_pixels", "probe"}
    other = stage(tmp_path, "again", Probe(data="shards", encoders=("moco",)), "f" * 8)
    written(other.folder / "moco", "accuracy/linear_few")
    both = logs.sources({"": [*sweep["seed=0"], other]})
    assert {"moco", "moco (again)", "moco (probe)"} <= set(both)  # their points would lie in one another's curves


def test_a_row_of_hparams_is_an_encoder(sweep):
    found = logs.rows(sweep)
    moco = found["moco seed=1"]
    assert [*moco][:3] == ["encoder", "objective", "temperature"] and moco["seed"] == 1 and moco["queue"] == 65536
    assert {"batch", "lr", "epochs", "views", "net"} <= moco.keys()
    assert moco["folder"].endswith("moco-b11111111")
    assert "queue" not in found["vae seed=0"]
    assert found["raw_pixels seed=0"]["objective"] == "none"


def test_rows_come_variant_by_variant(sweep):
    """TensorBoard has seven colours in turn: of seven rows a variant each has its own in all."""
    marks = [run.split()[1] for run in logs.rows(sweep)]
    assert marks == sorted(marks) and len(set(marks)) == 2


def test_of_many_runs_each_is_asked_for(tmp_path):
    """TensorBoard ticks none where there are more than forty."""
    few = {f"seed={seed}": variant(tmp_path, seed) for seed in range(9)}
    assert len(logs.sources(few)) == 27 + 1 and logs.address(few) == logs.ADDRESS
    many = few | {f"vae.beta=0.{i} seed=0": [stage(tmp_path, "vae", Pretrain(data="s"), f"{i}")] for i in range(20)}
    (asked,) = parse_qs(urlsplit(logs.address(many)).fragment)["runSelectionState"]
    ticked = json.loads(b64decode(asked))
    assert set(ticked) == {*logs.sources(many), "healthy", "collapsed"} and all(ticked.values())


def test_what_differs_within_an_objective_is_a_column(tmp_path):
    two = {
        f"moco.net.width={w}": [stage(tmp_path, "moco", Pretrain(data="s", net={"kind": "cnn", "width": w}), f"{w}")]
        for w in (16, 64)
    }
    assert {values["net.width"] for values in logs.rows(two).values()} == {16, 64}


def test_lines_mark_what_is_healthy(sweep):
    found = logs.lines(sweep)
    assert found["healthy"]["collapse/std"] == pytest.approx(128**-0.5)
    assert found["healthy"]["collapse/directions"] == 128 and found["collapsed"]["collapse/directions"] == tags.NARROW


def test_before_packing_there_is_no_page(sweep, tmp_path):
    later = {mark: [replace(p, provisional=True) for p in group] for mark, group in sweep.items()}
    logs.Logs(tmp_path, "two").refresh(later)
    assert not (tmp_path / "pages").exists()
