"""Runs can be told apart: what each was to be, how it differs from its like, how far it is, what it has come to."""

import json
import os
import time
from pathlib import Path

import pytest

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
