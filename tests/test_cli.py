"""The command line: help at once, usage errors with the nearest name, tables of what came out."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import artifact, cli, commands, display, progress, show
from pipeline.commands import run

REPOSITORY = Path(__file__).parents[1]
CONFIG = """\
stages:
  shards: {kind: pack, source: digits}
  moco: {kind: pretrain, data: shards, views: {kind: characters}, objective: {kind: moco, queue: 512}, epochs: 3}
  vae: {kind: pretrain, data: shards, objective: {kind: vae}}
  probe: {kind: probe, data: shards, encoders: [moco, vae]}
"""


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(CONFIG)
    return tmp_path


def shell(*words: str) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=env)


HEAVY = ("torch", "ray", "torchvision", "accelerate", "sklearn", "scipy", "rich", "numba", "tensorboard")


def loaded(*words: str) -> set[str]:
    """Top-level modules that a command imports."""
    told = shell("-X", "importtime", "-m", "pipeline", *words).stderr
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in told.splitlines() if "|" in line}


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["show", "--help"], []])
def test_help_loads_nothing_heavy(words):
    assert not loaded(*words) & {*HEAVY, "yaml", "pydantic", "numpy"}


@pytest.mark.parametrize("words", [["run", "c.yaml", "moco.epohcs=3"], ["run", "absent.yaml"], ["rn"]])
def test_a_mistake_loads_nothing_heavy(place, words):
    assert not loaded(*words) & set(HEAVY)


def test_every_line_is_an_object_for_machines(place):
    def said(text: str) -> list[dict]:
        return [json.loads(line) for line in text.splitlines()]

    command = ["-m", "pipeline", "run", "c.yaml", "--here", "--json", "--only", "shards"]
    first, second = shell(*command), shell(*command)
    assert (first.returncode, first.stderr, second.stderr) == (0, "", "")
    told = [(line["event"], line["stage"]) for line in said(first.stdout) if line["event"] != "step"]
    assert told == [("starts", "shards"), ("done", "shards"), ("said", "shards"), ("said", "")]
    (done,) = (line for line in said(second.stdout) if line["event"] == "done")
    assert Path(done["folder"], artifact.NAME).exists() and done["text"].startswith("done already")
    assert [line["event"] for line in said(shell(*command, "--dry-run").stdout)] == ["table"]
    wrong = shell(*command, "shards.sorce=x")
    (line,) = said(wrong.stderr)
    assert (line["event"], line["code"], wrong.returncode, wrong.stdout) == ("failed", 2, 2, "")


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["rnu"], 'unknown command "rnu"; did you mean "run"?'),
        (["shwo"], 'did you mean "show"?'),
        (["frobnicate"], "expected one of run, settings"),
        (["run"], "the following arguments are required: CONFIG"),
        (["run", "c.yaml", "--dryrun"], 'unknown option "--dryrun"; did you mean "--dry-run"?'),
        (["run", "c.yaml", "--onyl", "moco"], 'did you mean "--only"?'),
        (["run", "c.yaml", "--dry"], 'did you mean "--dry-run"?'),
        (["run", "c.yaml", "--only"], "--only"),
        (["run", "c.yaml", "--only", "mocco"], '--only mocco: no such stage; did you mean "moco"?'),
        (["run", "c.yaml", "moco"], "expected key=value"),
        (["show", "a", "b"], 'unknown argument "b"'),
        (["show", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_usage_errors(place, capsys, words, answer):
    assert cli.main(words) == 2
    told = capsys.readouterr()
    assert answer in told.err and "Traceback" not in told.err and told.out == ""
    assert sorted(p.name for p in place.iterdir()) == ["c.yaml"]


@pytest.mark.parametrize(
    "words",
    [
        ["run", "c.yaml", "moco.epohcs=3", "seed=x"],
        ["run", "c.yaml", "shards.source=folder:absent"],
        ["run", "abs.yaml"],
        ["run", "c.yaml", "--here", "--nlyo"],
    ],
)
def test_mistakes_as_a_user_meets_them(place, words):
    told = shell("-m", "pipeline", *words)
    assert told.returncode == 2 and told.stdout == ""
    assert told.stderr.strip() and "Traceback" not in told.stderr
    assert sorted(p.name for p in place.iterdir()) == ["c.yaml"]


def test_help_is_help(capsys):
    assert cli.main(["--help"]) == 0 and "pipeline run CONFIG" in capsys.readouterr().out
    assert cli.main(["run", "--help"]) == 0 and "--dry-run" in capsys.readouterr().out
    assert cli.main([]) == 2 and "pipeline run CONFIG" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ends", "code"), [("return 75", 75), ("sys.exit(2)", 2), ("sys.exit()", 0), ("raise KeyError('own')", 1)]
)
def test_a_process_ends_with_its_code_after_all_that_is_to_be_done_at_exit(ends, code):
    text = f"""
import atexit, sys
from pipeline import process
def main():
    atexit.register(print, "at exit")
    {ends}
process.run(main)
"""
    told = shell("-c", text)
    assert (told.returncode, told.stdout) == (code, "at exit\n")
    assert ("KeyError" in told.stderr) == (code == 1)


def test_help_of_what_a_scheduler_starts():
    told = shell(str(REPOSITORY / "jobs/run.py"), "--help")
    assert told.returncode == 0 and "--dry-run" in told.stdout


def test_options_stand_anywhere(place):
    for words in (
        ["c.yaml", "seed=1", "--only", "moco", "vae", "--here"],
        ["--here", "c.yaml", "--only", "moco", "vae", "seed=1"],
        ["c.yaml", "--only", "moco", "--only", "vae", "--here", "seed=1"],
    ):
        options = commands.parse(run.parser(), words)
        assert options.config == "c.yaml" and options.here
        assert "seed=1" in options.overrides + options.only and {"moco", "vae"} <= set(options.only)


def test_a_dry_run_writes_nothing_and_tells_the_plan(place, capsys):
    assert cli.main(["run", "c.yaml", "--dry-run", "--here", "moco.optimiser.lr=0.06"]) == 0
    told = capsys.readouterr().out
    assert sorted(p.name for p in place.iterdir()) == ["c.yaml"]
    for name in ("shards", "moco", "vae", "probe"):
        assert f"runs/{name}-" in told
    assert "15" in told and "1280" in told  # three epochs of five batches of 256, of 1,438 images
    assert "moco: learning rate 0.06 = lr 0.06 x batch 256 / reference_batch 256" in told


def test_a_dry_run_before_packing_counts_images_and_opens_none(place, capsys):
    (place / "images").mkdir()
    for i in range(40):
        (place / f"images/{i}.png").write_bytes(b"not opened yet")
    words = ["run", "c.yaml", "--dry-run", "--here", "--only", "moco", "shards.source=folder:images"]
    assert cli.main(words) == 2
    count = int(re.search(r"batch 256 of (\d+) images to train on", capsys.readouterr().err)[1])  # type: ignore[index]
    assert 24 <= count <= 38
    assert cli.main([*words, "moco.batch=8"]) == 0
    told = capsys.readouterr().out
    assert str(3 * (count // 8)) in told and str(count // 8 * 8) in told and "after packing" in told


def finished(root: Path, name: str, kind: str, metrics: dict, settings: dict) -> Path:
    """A finished artifact."""
    out = root / f"{name}-0123abcd"
    out.mkdir(parents=True)
    artifact.begin(out)
    artifact.finish(out, {"stage": name, "kind": kind, "key": "0" * 64, "seed": 3, "settings": settings}, metrics)
    return out


PROTOCOL = {"per_class": 10, "draws": 7, "neighbours": 20, "temperature": 0.07}
ROWS = {
    "moco": {"linear_top1": 0.987, "linear_few": 0.91, "linear_few_sd": 0.0123, "knn_top1": 0.975},
    "raw_pixels": {"linear_top1": 0.9, "linear_few": 0.8, "linear_few_sd": 0.02, "knn_top1": None},
}


def test_results_are_shown_with_their_protocol(place, capsys):
    finished(place / "runs", "moco", "pretrain", {"learn/loss": 1.25, "rows": {}}, {})
    known = {"untrained": {"random": "the network of moco"}}
    finished(place / "runs", "probe", "probe", {"rows": ROWS, "protocol": known}, PROTOCOL | {"per_class": 5})
    assert cli.main(["show"]) == 0
    told = capsys.readouterr().out
    for part in ("98.70 %", "91.00 ± 1.23 %", "97.50 %", "raw_pixels", "learn/loss 1.25", "seed 3", "7 draws",
                 "linear, 5 a class", "random: the network of moco, untrained"):
        assert part in told
    assert cli.main(["show", "runs/probe-0123abcd"]) == 0
    told = capsys.readouterr().out
    assert "98.70 %" in told and "learn/loss" not in told


def test_nothing_to_show(place, capsys):
    (place / "runs").mkdir()
    assert cli.main(["show"]) == 0
    assert capsys.readouterr().out == "runs: nothing is finished yet\n"


def test_tables_without_rich(place, capsys, monkeypatch):
    for name in ("rich", "rich.console", "rich.table", "rich.progress"):
        monkeypatch.setitem(sys.modules, name, None)
    show.table("title", ["a", "bb"], [["1", 22], ["333", "4"]], "note")
    assert capsys.readouterr().out == "title\na    bb\n1    22\n333  4\nnote\n"
    assert display.bars() is None


def test_a_watch_tells_progress_in_plain_lines(place, capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: clock[0])
    watch = display.Display()
    watch.add("moco", place)
    reports = (12, 10, 100), (24, 10, 100), (62, 20, 100), (66, 21, 100), (82, 45, 100), (95, 5, 9)
    for seconds, step, total in reports:
        clock[0] = seconds
        progress.report(place, step, total, "images", "all is well", loss=0.5)
        watch.move("moco", None, progress.read(place))
    assert capsys.readouterr().out.splitlines() == [
        "moco: starts",
        "moco: 10 of 100 images, loss 0.5, all is well",  # where it begins, or goes on: how fast it is, is not known
        "moco: 20 of 100 images, 12.0 images/min, 7 min left, loss 0.5, all is well",
        "moco: 45 of 100 images, 30.0 images/min, 2 min left, loss 0.5, all is well",
        "moco: 5 of 9 images, loss 0.5, all is well",  # another count
    ]


def test_a_watch_tells_machines_numbers(place, capsys, monkeypatch):
    monkeypatch.setenv("PIPELINE_LOG", "json")
    clock = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: clock[0])
    watch = display.Display()
    watch.add("moco", place)
    for clock[0], step in ((12.0, 10), (24.0, 34)):
        progress.report(place, step, 100, loss=0.5, images_per_s=1234.5)
        watch.move("moco", None, progress.read(place))
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    numbers = {"step": 34, "total": 100, "steps_per_s": 2.0, "images_per_s": 1234.5, "seconds_left": 33, "loss": 0.5}
    assert said["text"] == "34 of 100 steps, 1,234 images/s, 33 s left, loss 0.5" and numbers.items() <= said.items()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (99, "99 s"), (150, "2 min"), (5900, "98 min"), (11100, "3 h 05 min"), (187200, "2 d 4 h")],
)
def test_a_time_as_one_says_it(seconds, words):
    assert display.duration(seconds) == words


def test_pack_for_real(place, capsys):
    """The first stage of every config, through the whole command, twice."""
    assert cli.main(["run", "c.yaml", "--here", "--only", "shards"]) == 0
    folder = next((place / "runs").glob("shards-*"))
    record = json.loads((folder / "artifact.json").read_text())
    assert (record["stage"], record["metrics"]["classes"]) == ("shards", 10)
    assert cli.main(["run", "c.yaml", "--here", "--only", "shards"]) == 0
    assert "shards: done already" in capsys.readouterr().out
