"""The README holds: its commands parse, its configs load, its map is the tree."""

import re
import shlex
from pathlib import Path

import pytest

from pipeline import cli, commands, config
from pipeline.commands import run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.S)
LINES = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines() if line.strip()]


@pytest.fixture
def at_home(monkeypatch):
    monkeypatch.chdir(ROOT)


def words(line: str) -> list[str]:
    return shlex.split(line, comments=True)


def after(found: list[str], *before: str) -> list[str] | None:
    """What follows a run of words, None where they do not stand in the line."""
    for i in range(len(found)):
        if tuple(found[i : i + len(before)]) == before:
            return found[i + len(before) :]
    return None


@pytest.mark.parametrize("line", LINES)
def test_a_command_is_one_that_runs(line, at_home):
    found = words(line)
    given = after(found, "pipeline", "run") or after(found, "jobs/run.py")
    if found[0] == "sbatch":
        assert Path(found[1]).is_file()
        given = found[2:]
    if given is None:
        known = after(found, "pipeline") or after(found, "uv", "run")
        assert known and (known[0] in (*cli.COMMANDS, "pytest", "tensorboard") or known[:2] == ["python", "-m"])
        return
    options = commands.parse(run.parser(), given)
    overrides = [w for w in options.overrides if not w.endswith("/path/to/imagenet")]
    data = [] if "source=" in "".join(overrides) or "quickstart" in options.config else ["shards.source=folder:tests"]
    for chosen in run.sweep([*overrides, *data]).values():
        assert config.load(options.config, chosen).stages


def test_the_first_command_stands_near_the_top():
    top = README.splitlines()[:20]
    assert any(line.startswith("pip install uv && uv run pipeline run configs/quickstart.yaml") for line in top)
    assert len(README.splitlines()) <= 200


def test_its_config_loads(tmp_path, monkeypatch):
    (text,) = [block for kind, block in BLOCKS if kind == "yaml"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "c.yaml").write_text(text)
    assert set(config.load("c.yaml").stages) == {"shards", "moco", "codes", "probe"}


def test_every_path_it_names_is_there():
    named = set(re.findall(r"`((?:[\w.-]+/)+[\w.-]*)`", README)) | set(re.findall(r"\]\(([^)]+)\)", README))
    missing = [n for n in named if not (ROOT / n).exists() and not (ROOT / "pipeline" / n).exists()]
    assert not missing


def test_the_map_is_whole():
    """Every folder of the package stands in the map."""
    folders = {p.parent.name for p in (ROOT / "pipeline").glob("*/__init__.py")}
    assert not [name for name in sorted(folders) if f"`pipeline/{name}/`" not in README]
