"""The README holds: its commands parse, its configs load, its map is the tree."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

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
    overrides = [w for w in options.overrides if not w.endswith(("/path/to/imagenet", "folder:photos"))]
    data = [] if "source=" in "".join(overrides) or "quickstart" in options.config else ["shards.source=folder:tests"]
    for chosen in run.sweep([*overrides, *data]).values():
        assert config.load(options.config, chosen).stages


def test_the_first_command_stands_near_the_top():
    top = README.splitlines()[:20]
    assert any(line.startswith("pip install uv && uv run pipeline run configs/quickstart.yaml") for line in top)
    assert len(README.splitlines()) <= 200


def photographs(folder: Path, classes: int = 4, each: int = 24) -> None:
    """Class folders of JPEGs of several sizes."""
    rng = np.random.default_rng(0)
    for i in range(classes * each):
        coarse = rng.integers(0, 255, (5, 6, 3), np.uint8)
        path = folder / f"class{i % classes}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Picture.fromarray(coarse).resize((80 + i % 7, 72)).save(path)


@pytest.mark.slow
def test_the_first_screen_runs_as_it_is_typed(tmp_path, monkeypatch):
    """On few photographs for two steps. Of its commands only TensorBoard is left out, which has tests of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    photographs(tmp_path / "photos")
    screen = README.split("## A folder of photographs")[1].split("## ")[0]
    (commands_typed,), (code,) = (re.findall(rf"```{kind}\n(.*?)```", screen, re.S) for kind in ("bash", "python"))
    done = []

    def known(text: str) -> str:
        """With the name that the training's folder has here."""
        return text.replace("runs/simclr-1234abcd", str(next(iter(Path().glob("runs/simclr-*")), "")))

    for line in commands_typed.splitlines():
        program, *rest = words(known(line))[2:]
        if program == "pipeline":
            short = ["simclr.steps=2", *["--here"] * (rest[0] == "run")] if "configs/photos.yaml" in rest else []
            subprocess.run([sys.executable, "-m", "pipeline", *rest, *short], check=True)
            done.append(rest[0])
    assert done == ["run", "report", "embed", "export"]
    names: dict = {}
    exec(compile(known(code), "README.md", "exec"), names)
    assert names["features"].shape == (8, 512)
    assert Path("features.parquet").exists() and Path("exported").is_dir()


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
