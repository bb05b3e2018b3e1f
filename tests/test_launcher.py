"""The variables of a launcher: a whole world, nothing, or one line."""

import os
import re
from pathlib import Path

import pytest

from pipeline import cli, launcher
from pipeline.errors import ConfigError

WORLD = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def no_launcher(monkeypatch):
    for name in (*launcher.NAMES, *launcher.MPI, *launcher.OTHERS, "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.setenv(name, "")  # so that it is put back, too, where a test takes it away
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    ("env", "line"),
    [
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0 without WORLD_SIZE is left over"),
        ({"RANK": "3", "LOCAL_RANK": "3"}, "RANK=3 LOCAL_RANK=3 without"),
        ({"WORLD_SIZE": ""}, ""),
        ({"WORLD_SIZE": " ", "LOCAL_RANK": "", "RAY_ADDRESS": ""}, ""),
        ({**WORLD, "WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, ""),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_SIZE=4"),
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
         "started one process where several were asked"),
    ],
)  # fmt: skip
def test_leftovers_of_a_launcher_are_one_process(no_launcher, capsys, env, line):
    for name, value in env.items():
        no_launcher.setenv(name, value)
    launcher.check_environment()
    told = capsys.readouterr().err
    assert line in told and told.count("\n") == bool(line)
    assert launcher.size() == 1 and launcher.rank() == 0
    assert not [n for n in (*launcher.NAMES, *launcher.MPI, "RAY_ADDRESS") if n in os.environ]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"RANK": ""}, "WORLD_SIZE=2, but RANK not set"),
        ({"MASTER_ADDR": "", "LOCAL_RANK": ""}, "LOCAL_RANK and MASTER_ADDR not set"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: expected a whole number from 1 on"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0: expected"),
        ({"RANK": "2"}, "RANK=2, but WORLD_SIZE=2: expected less"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT=http: expected"),
    ],
)
def test_half_a_world_is_refused(no_launcher, tmp_path, capsys, change, line):
    for name, value in (WORLD | change | {"PIPELINE_JOIN_S": "1"}).items():  # were it not refused, nobody would come
        no_launcher.setenv(name, value)
    (config := tmp_path / "c.yaml").write_text("stages:\n  shards: {kind: pack, source: digits}\n")
    assert cli.main(["run", str(config), f"root={tmp_path}/runs", "--here"]) == 2
    told = capsys.readouterr().err
    assert line in told and told.count("\n") == 1 and not (tmp_path / "runs").exists()


def test_a_whole_world_is_left_as_it_is(no_launcher, capsys):
    for name, value in WORLD.items():
        no_launcher.setenv(name, value)
    launcher.check_environment()
    assert (launcher.size(), launcher.rank()) == (2, 1) and capsys.readouterr().err == ""
    assert WORLD.items() <= dict(os.environ).items()


@pytest.mark.parametrize("value", ["soon", "-1", "inf", "nan"])
def test_a_variable_that_is_no_number_is_refused(no_launcher, value):
    no_launcher.setenv("PIPELINE_JOIN_S", value)
    with pytest.raises(ConfigError, match=f"PIPELINE_JOIN_S={value}: expected a number"):
        launcher.number("PIPELINE_JOIN_S", 300)


def test_every_variable_of_our_own_is_in_one_list():
    root = Path(__file__).parents[1]
    files = [p for folder in ("pipeline", "jobs", "slurm", "benchmarks") for p in (root / folder).rglob("*.*")]
    read = {name for p in files if p.suffix in (".py", ".sh", ".sbatch", ".md")
            for name in re.findall(r"PIPELINE_\w+", p.read_text())}  # fmt: skip
    assert read == set(launcher.OURS)
