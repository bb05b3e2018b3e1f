"""What is typed is what is meant: # and commas in values, ~, brackets in names of tars, numbers of options."""

import os
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli, config
from pipeline.commands.run import sweep
from pipeline.data import patterns
from pipeline.document import parse_value
from pipeline.errors import ConfigError
from tests.test_pack import picture
from tests.test_tar import archive, pairs

CONFIG = "stages: {shards: {kind: pack, source: digits}}\n"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    Path("c.yaml").write_text(CONFIG)
    return tmp_path


@pytest.mark.parametrize("text, value", [
    ("/data/run #2", "/data/run #2"), ("#2", "#2"), ("a # b # c", "a # b # c"), ("a#b", "a#b"), ("'a #b'", "a #b"),
    ('"a #b"', "a #b"), ("{a: 'x #y'}", {"a": "x #y"}), ("3", 3), ("3 #", "3 #"), ("", None),
])  # fmt: skip
def test_a_value_keeps_its_number_signs(text, value):
    assert parse_value(text) == value


@pytest.mark.parametrize("text", ["[a, b] #c", "'a' #b", "{a: 1} #2", "[a #b, c]"])
def test_what_follows_a_whole_value_is_no_comment(text):
    with pytest.raises(ValueError, match=r"quote all of it|not YAML"):
        parse_value(text)


def test_a_number_sign_reaches_the_settings(place):
    Path("photos #1").mkdir()
    chosen = config.load("c.yaml", ["root=out #3", "shards.source=folder:photos #1"])
    shards: Any = chosen.stages["shards"]
    assert (chosen.root, shards.source) == ("out #3", "folder:photos #1")


@pytest.mark.parametrize("value, runs", [
    ("a,b", 2), ("'a,b'", 1), ('"a,b"', 1), ("it's,b", 2), ("a),b", 2), ("[a,b],c", 2), ("wds:{a,b}.tar", 1),
    ("'a,b',c", 2), ("{x: \"}\", y: 'a,b'}", 1), ("a,b's,c", 3),
])  # fmt: skip
def test_commas_are_sweeps_but_for_quotes_and_brackets(value, runs):
    assert len(sweep([f"k={value}"])) == runs


def test_a_sweep_is_said_and_a_quoted_comma_is_none(place, capsys):
    assert cli.main(["run", "c.yaml", "seed=0,1,2", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("a sweep of 3 runs: seed=0; seed=1; seed=2\n")
    Path("a,b").mkdir()
    assert cli.main(["run", "c.yaml", "shards.source=folder:a,b", "--dry-run"]) == 2
    told = capsys.readouterr()
    assert "a comma makes a sweep; where it is part of a value, quote that" in told.err
    (Path("a,b") / "1.png").write_bytes(picture(1))
    assert cli.main(["run", "c.yaml", "shards.source='folder:a,b'", "--dry-run"]) == 0
    told = capsys.readouterr()
    assert "sweep" not in told.out + told.err


def test_a_tilde_is_the_users_folder_in_every_path(place, capsys):
    (place / "home/photos").mkdir()
    words = ["root=~/runs", "shards.source=folder:~/photos", "shards.root=~/sets"]
    chosen = config.load("c.yaml", words)
    shards: Any = chosen.stages["shards"]
    home = f"{place}/home"
    assert (chosen.root, shards.source, shards.root) == (f"{home}/runs", f"folder:{home}/photos", f"{home}/sets")
    assert cli.main(["run", "c.yaml", "root=~/runs", "--here"]) == 0
    assert [p.name[:7] for p in (place / "home/runs").glob("shards-*")] == ["shards-"] and not Path("~").exists()
    capsys.readouterr()
    assert cli.main(["show", "~/runs"]) == 0 and "shards-" in capsys.readouterr().out
    for word in ("root=~absent-user/x", "shards.source=folder:~absent-user/x", "shards.source=wds:~absent-user/x.tar"):
        with pytest.raises(ConfigError, match="nobody of that name has a home"):
            config.load("c.yaml", [word])


# ---- names of tars


def tars(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(archive(pairs(4)))


@pytest.mark.parametrize("pattern, expected", [
    ("x[1]-0.tar", ["x[1]-0.tar"]),  # that file is there: its brackets are its name's
    ("x[12]-0.tar", ["x1-0.tar", "x2-0.tar"]),
    (r"x\[1\]-*.tar", ["x[1]-0.tar", "x[1]-1.tar"]),
    ("x[1]-{0..1}.tar", ["x[1]-0.tar", "x[1]-1.tar"]),
    ("d[a]/*.tar", ["d[a]/0.tar", "d[a]/1.tar"]),
    ("d[ab]/*.tar", ["da/0.tar"]),
    (r"y\{1,2\}.tar", ["y{1,2}.tar"]),
    (r"z\*.tar", ["z*.tar"]),
    ("z*.tar", ["z*.tar", "zz.tar"]),
    (r"w\\v.tar", [r"w\v.tar"]),
])  # fmt: skip
def test_brackets_can_be_named(place, pattern, expected):
    tars("x1-0.tar", "x2-0.tar", "x[1]-0.tar", "x[1]-1.tar", "d[a]/0.tar", "d[a]/1.tar", "da/0.tar", "y{1,2}.tar",
         "z*.tar", "zz.tar", r"w\v.tar")  # fmt: skip
    assert sorted(map(str, patterns.tars(pattern))) == sorted(expected)
    assert patterns.missing(pattern) == []
    assert config.load("c.yaml", [f"shards.source='wds:{pattern}'"])
    for name in expected:
        assert patterns.tars(patterns.escaped(name)) == [Path(name)]


def test_a_tar_of_a_bracketed_folder_that_is_missing_is_named(place, capsys):
    tars("d[a]/0.tar", "d[a]/2.tar")
    assert patterns.missing("d[a]/{0..2}.tar") == ["d[a]/1.tar"]
    assert cli.main(["index", "d[a]/{0..2}.tar"]) == 2 and "no file d[a]/1.tar" in capsys.readouterr().err
    assert cli.main(["index", "e[a]/0.tar"]) == 2
    assert "no file matches e[a]/0.tar; where a bracket is part of a name" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["plain", "with[brackets]"])
def test_a_folder_of_tars_says_how_to_name_them(place, capsys, folder):
    tars(f"{folder}/a.tar", f"{folder}/b.tar")
    inside = f'"{patterns.escaped(folder)}/*.tar" (2 there)'
    for words in (["index", folder], ["check", folder], ["run", "c.yaml", f"shards.source='wds:{folder}'"]):
        assert cli.main(words) == 2
        told = capsys.readouterr()
        assert f"{folder} is a folder; name its tars: {inside}" in told.err and told.err.count("\n") == 1
    pattern = inside.split('"')[1]
    assert cli.main(["check", pattern]) == 0 and cli.main(["index", pattern]) == 0
    assert cli.main(["check", folder]) == 0
    Path("empty").mkdir()
    assert cli.main(["index", "empty"]) == 2 and "no tars lie in it" in capsys.readouterr().err
    assert sorted(os.listdir("empty")) == []


@pytest.mark.parametrize("words", [
    ["parity", "c.yaml", "--processes", "0"], ["parity", "c.yaml", "--processes", "2", "-1"],
    ["parity", "c.yaml", "--steps", "0"], ["check", "x.tar", "--threads", "0"], ["index", "x.tar", "--threads", "two"],
    ["embed", "a", "b", "c.parquet", "--threads", "-3"],
])  # fmt: skip
def test_numbers_of_options_are_counts(place, capsys, words):
    tars("x.tar")
    before = sorted(place.rglob("*"))
    assert cli.main(words) == 2
    assert "expected a whole number of at least 1" in capsys.readouterr().err
    assert sorted(place.rglob("*")) == before
