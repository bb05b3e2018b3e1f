"""Runs can be told apart: what each was to be, how it differs from its like, how far it is, what it has come to."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline import artifact, cli, progress, runs
from pipeline.settings.stages import Codes, Pack, Pretrain, Probe, Stage

KEYS = {"shards": "a" * 64}
ROW = {"linear_top1": 0.9, "linear_few": 0.8, "linear_few_sd": 0.01, "knn_top1": 0.85}


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    return tmp_path / "runs"


def make(
    root: Path, name: str, settings: Stage, metrics: dict | None, inputs: dict | None = None, seed: int = 0
) -> Path:
    """A run as the runner leaves it: finished with these metrics, or only begun."""
    digest = artifact.key(settings, seed, inputs or {}, {})
    out = artifact.folder(root, name, digest)
    out.mkdir(parents=True)
    body = settings.model_dump(mode="json", exclude={"place"})
    facts = {"config": "mine", "stage": name, "kind": settings.kind, "key": digest, "settings": body, "seed": seed}
    facts |= {"inputs": inputs or {}}
    artifact.begin(out, facts)
    if metrics is not None:
        artifact.finish(out, facts, metrics)
    return out


def key(out: Path) -> str:
    return json.loads((out / "artifact.json").read_text())["key"]


def moco(root: Path, seed: int = 0, **changes) -> Path:
    settings = Pretrain.model_validate({"data": "shards", "epochs": 3, **changes})
    return make(root, "moco", settings, {"learn/loss": 3.02, "collapse/directions": 41.0}, KEYS, seed)


def sweep(root: Path) -> list[Path]:
    """Three trainings and the probes of two."""
    rates = ((0, 0.1), (0, 0.2), (1, 0.2))
    trained = [moco(root, seed, optimiser={"lr": lr}, log_steps=5 + seed) for seed, lr in rates]
    probe = Probe(data="shards", encoders=("moco",))
    return [make(root, "probe", probe, {"rows": {"moco": ROW}}, KEYS | {"moco": key(out)}) for out in trained[:2]]


def told(capsys, *words: str) -> list[str]:
    assert cli.main(["show", *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_line_for_each_run_says_how_it_differs_and_what_it_has_come_to(root, capsys):
    probes = sweep(root)
    lines = {line.split()[0]: line for line in told(capsys) if line.startswith((" moco-", " probe-"))}
    assert len(lines) == 5
    ends = [" ".join(line.split()[1:-3]) for line in lines.values()]
    assert ends[:3] == [
        f"lr {lr} {seed} 3 epochs loss 3.02, directions 41" for lr, seed in ((0.1, 0), (0.2, 0), (0.2, 1))
    ]
    assert lines[probes[0].name].split()[1:4] == ["lr", "0.1", "0"] and "moco 80.0 %" in lines[probes[0].name]


def test_of_few_probes_the_tables_follow_with_their_protocol(root, capsys):
    probe, _ = sweep(root)
    assert "80.00 ± 1.00 %" in "\n".join(told(capsys, str(probe)))
    assert any("linear, 10 labels a class" in line for line in told(capsys))


def test_numbers_are_numbers_for_machines(root, capsys, monkeypatch):
    monkeypatch.setenv("PIPELINE_LOG", "")
    sweep(root)
    rows = [json.loads(line) for line in told(capsys, "--json")]
    assert [row["stage"] for row in rows] == ["moco"] * 3 + ["probe"] * 2
    assert rows[0]["differences"] == {"optimiser.lr": 0.1} and rows[0]["outcome"] == {"loss": 3.02, "directions": 41.0}
    assert rows[3]["differences"] == {"moco.optimiser.lr": 0.1} and rows[3]["outcome"] == {"moco %": 80.0}
    assert rows[0]["bytes"] > 500 and rows[0]["settings"]["epochs"] == 3 and rows[0]["config"] == "mine"


def test_unfinished_runs_say_how_far_they_are_and_whether_they_are_at_work(root, capsys):
    settings = Pretrain(data="shards")
    folders = [make(root, "moco", settings, None, KEYS, seed) for seed in range(3)]
    for out in folders:
        progress.report(out, 30, 60, loss=5.5, images_per_s=100.0)
    (folders[1] / artifact.FAILED).write_text("70")
    (folders[2] / artifact.LOCK).write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    states = {line.split()[1]: line for line in told(capsys) if line.startswith(" moco-")}
    for seed, state in enumerate(("stopped", "failed", "running")):
        assert f"{state} at 30 of 60 steps, loss 5.5 " in states[str(seed)]
    then = time.time() - 2 * artifact.STALE
    os.utime(folders[2] / artifact.LOCK, (then, then))
    assert runs.read_one(folders[2]).state == "stopped"  # no heartbeat


def test_a_stage_says_its_one_number():
    metrics = {"learn/loss": 3.0, "collapse/directions": 4.0, "vae/kl": 1.0, "other": 2.0}
    assert Pretrain(data="s").outcome(metrics) == {"loss": 3.0, "directions": 4.0}
    vae = Pretrain.model_validate({"data": "s", "objective": {"kind": "vae"}})
    assert vae.outcome(metrics) == {"loss": 3.0, "KL": 1.0}
    assert Codes(data="s").outcome({"objective": 0.2, "explained": 0.5}) == {"objective": 0.2, "explained %": 50.0}
    assert Pack().outcome({"train_images": 7, "bad": 0}) == {"train images": 7}


def test_a_run_is_found_by_the_beginning_of_its_name(root):
    out = moco(root)
    assert runs.find(out.name[:7], root).folder == runs.find(str(out), root).folder == out
    moco(root, seed=1)
    with pytest.raises(runs.ConfigError, match="2 runs are called so: moco-"):
        runs.find("moco", root)
    with pytest.raises(runs.ConfigError, match=f'no such run in .*did you mean "{out.name}"'):
        runs.find(out.name.replace("moco", "mocc"), root)


# ---------------------------------------------------------------------------------------------------------------- diff
def probed(root: Path, right: int, seed: int, draws: list[list[str]]) -> Path:
    """The probe of a training, whose encoder takes the first ``right`` of 40 test images for what they are."""
    settings = Probe(data="shards", encoders=("moco",), draws=len(draws))
    trained = moco(root, seed, optimiser={"lr": 0.01 * right})
    rows = {"moco": ROW | {"linear_few": right / 40}}
    out = make(root, "probe", settings, {"rows": rows}, KEYS | {"moco": key(trained)})
    (out / "results.json").write_text(json.dumps({"protocol": {"data": "x"}, "label_draws": draws}))
    (out / "predicted").mkdir()
    table = np.zeros((len(draws), 40), np.int32)
    table[:, right:] = 1
    few = {"linear_few": table, "linear_top1": table[0], "knn_top1": table[0]}
    save_file(few | {"labels": np.zeros(40, np.int32)}, out / "predicted/moco.safetensors")
    return out


def test_two_probes_are_compared_image_by_image(root, capsys):
    one, two = probed(root, 20, 0, [["a"], ["b"]]), probed(root, 30, 0, [["a"], ["b"]])
    assert cli.main(["diff", one.name, two.name]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "moco.optimiser.lr │ 0.2 │ 0.3" in told and "50.00 % │ 75.00 % │ +25.00 [" in told
    assert "95 % interval over label draws and test images" in told


def test_probes_of_other_label_draws_have_no_interval(root, capsys):
    one, two = probed(root, 20, 0, [["a"], ["b"]]), probed(root, 30, 1, [["a"], ["c"]])
    assert cli.main(["diff", one.name, two.name, "--root", str(root)]) == 0
    told = capsys.readouterr().out
    assert "+25.00 " in told and "[" not in told and "without interval: they saw other images or label draws" in told


def test_two_trainings_are_compared_by_settings_and_numbers(root, capsys, monkeypatch):
    monkeypatch.setenv("PIPELINE_LOG", "")
    one, two = moco(root), moco(root, net={"kind": "resnet18"})
    assert cli.main(["diff", str(one), str(two), "--json"]) == 0
    tables = {row["text"]: row["rows"] for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert ["net.kind", "cnn", "resnet18"] in tables["settings"]
    assert ["learn/loss", 3.02, 3.02, 0.0] in tables["numbers"] and "inputs" not in tables


# --------------------------------------------------------------------------------------------------------------- clean
@pytest.fixture
def packed(root, capsys) -> Path:
    """A config whose images are packed, and a run, a page and an unfinished start that it does not need."""
    Path("c.yaml").write_text("stages:\n  shards: {kind: pack}\n  moco: {kind: pretrain, data: shards}\n")
    assert cli.main(["run", "c.yaml", "--here", "--only", "shards"]) == 0
    spare = moco(root)
    make(root, "old", Pack(), None)
    page = root / "pages/c-01234567"
    page.mkdir(parents=True)
    (page / "moco").symlink_to(spare)
    (root / "photos").mkdir()  # foreign
    (root / "notes-0123456x").mkdir()
    capsys.readouterr()
    return root


def left(root: Path) -> set[str]:
    return {path.name.partition("-")[0] for path in [*root.iterdir(), *root.glob("pages/*")]}


def test_what_no_config_needs_is_listed_and_removed_when_told(packed, capsys):
    before = left(packed)
    assert cli.main(["clean", "c.yaml"]) == 0
    told = capsys.readouterr().out
    assert left(packed) == before and "nothing is removed" in told
    assert [line.split()[0].partition("-")[0] for line in told.splitlines() if "-" in line[:12]] == [
        "moco", "old", "pages/c",
    ]  # fmt: skip
    assert cli.main(["clean", "c.yaml", "--remove"]) == 0
    assert left(packed) == {"shards", "pages", "photos", "notes"}
    assert cli.main(["clean", "c.yaml"]) == 0 and "everything is needed" in capsys.readouterr().out


def test_a_report_stays_while_all_that_it_shows_is_needed(packed):
    """Of a part of a sweep, say, which is no config's whole page and has no links."""
    (needed,), (spare,) = packed.glob("shards-*"), packed.glob("moco-*")
    for name, shown in (("c-00000001", [needed]), ("c-00000002", [needed, spare])):
        folder = packed / "pages" / name
        folder.mkdir()
        (folder / "report.html").write_text("")
        (folder / "results.json").write_text(json.dumps({"stages": [{"folder": f"runs/{p.name}"} for p in shown]}))
    assert cli.main(["clean", "c.yaml", "--remove"]) == 0
    assert [path.name for path in packed.glob("pages/*")] == ["c-00000001"]


def test_a_run_at_work_stays(packed):
    (out,) = packed.glob("old-*")
    (out / artifact.LOCK).write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    assert cli.main(["clean", "c.yaml", "--remove"]) == 0 and out.is_dir()


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["c.yaml", "seed=9"], "its other runs are known once the images are packed, shards in runs"),
        (["c.yaml", "--root", "elsewhere"], "elsewhere"),
        (["seed=9"], "no config is named"),
    ],
)
def test_clean_refuses_what_it_cannot_know(packed, words, answer, capsys):
    before = left(packed)
    assert cli.main(["clean", *words, "--remove"]) == 2
    assert answer in capsys.readouterr().err and left(packed) == before


def test_a_folder_that_holds_no_runs_is_refused(root, capsys):
    Path("p.yaml").write_text("root: photos\nstages:\n  shards: {kind: pack}\n")
    Path("photos/a-01234567").mkdir(parents=True)
    assert cli.main(["clean", "p.yaml", "--remove"]) == 2
    assert "photos: no folder of runs of this program" in capsys.readouterr().err
    assert Path("photos/a-01234567").exists()
