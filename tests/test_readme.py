"""The README holds: its commands parse, its configs load, its map is the tree."""

import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from pipeline import cli, commands, config
from pipeline.commands import run
from tests.raylets import Raylets

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.S)
LINES = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines() if line.strip()]


@pytest.fixture
def at_home(monkeypatch):
    monkeypatch.chdir(ROOT)


def words(line: str) -> list[str]:
    return shlex.split(line, comments=True)


def bare(line: str) -> str:
    """A command without what is said of it."""
    return line.partition("  # ")[0]


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


QUICK = [
    *(f"{name}.{words}" for name in ("moco", "pirl", "vae", "plane") for words in ("steps=2", "snapshots=0")),
    "codes.signals=1024", "codes.lista_steps=2", "codes.atoms=16", "probe.draws=2", "probe.train_examples=200",
]  # fmt: skip
SIZES = {
    "configs/quickstart.yaml": QUICK,
    "configs/photos.yaml": ["simclr.steps=2"],
    "configs/mnist.yaml": [
        *(f"{name}.{words}" for name in ("moco", "pirl", "simclr") for words in ("steps=2", "snapshots=0")),
        "moco.objective.queue=128", "pirl.train_examples=256", "probe.draws=2",
    ],
    "configs/imagenet.yaml": ["moco.batch=64", "pirl.batch=64"],
}  # fmt: skip
"""What makes a config of the README one of seconds."""
SEEN = ("tensorboard", "pytest", "sbatch", "parity")
"""What is run as it is typed elsewhere: by tests/test_tensorboard.py, .ci/run, tests/test_slurm.py, test_parity.py."""


def section(title: str, kind: str) -> list[str]:
    """The blocks of a kind below a heading."""
    return re.findall(rf"```{kind}\n(.*?)```", README.split(f"## {title}\n")[1].split("\n## ")[0], re.S)


def run_typed(line: str, names: Mapping[str, str], env: Mapping[str, str] | None = None) -> str:
    """Runs a line of the README with the names and addresses that it has here, on small data and in this process's
    environment. Returns the program's name; nothing is run where it is one of SEEN."""
    found = [names.get(word, word) for word in words(line)]
    while found[0] in ("uv", "run", "--extra", "onnx"):
        found = found[1:]
    name, *rest = found
    name = rest[0] if name == "pipeline" else name
    if name in SEEN:
        return name
    known = next((word for word in rest if word in SIZES), "")
    here = ["--here"] if "run" in rest else []
    program = [sys.executable, "-m", "pipeline"] if name == rest[0] else [str(Path(sys.executable).with_name(name))]
    subprocess.run([*program, *rest, *SIZES.get(known, []), *here], check=True, env=env)
    return name


@pytest.mark.slow
def test_the_first_screen_runs_as_it_is_typed(tmp_path, monkeypatch):
    """On few photographs for two steps."""
    at_a_newcomers(tmp_path, monkeypatch)
    (typed,), (code,) = (section("A folder of photographs", kind) for kind in ("bash", "python"))
    done = []
    for line in typed.splitlines():
        names = {"runs/simclr-1234abcd": str(next(iter(Path().glob("runs/simclr-*")), ""))}
        done.append(run_typed(line, names))
    assert done == ["run", "tensorboard", "report", "embed", "export"]
    names = {}
    exec(compile(code.replace("runs/simclr-1234abcd", str(*Path().glob("runs/simclr-*"))), "README.md", "exec"), names)
    assert names["features"].shape == (8, 512)
    assert Path("features.parquet").exists() and Path("exported").is_dir()


def at_a_newcomers(folder: Path, monkeypatch) -> None:
    """In a folder with the configs, photographs, and digits of 28x28 pixels in the place of MNIST."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (folder / "configs").symlink_to(ROOT / "configs")
    photographs(folder / "photos")
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    for i in range(500):
        path = folder / "data/mnist" / ("train" if i < 350 else "test") / str(labels[i]) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Picture.fromarray((16 * images[i]).clip(0, 255).astype(np.uint8).reshape(8, 8)).resize((28, 28)).save(path)


@pytest.mark.slow
def test_the_commands_run_as_they_are_typed(tmp_path, monkeypatch):
    """In their order, on small data for two steps: each ends well."""
    at_a_newcomers(tmp_path, monkeypatch)
    typed, launched = section("Commands", "bash")
    names = {"shards.source=folder:/path/to/imagenet": "shards.source=folder:photos"}
    done = []
    for line in typed.splitlines():
        made = [str(path.name) for path in sorted(Path().glob("runs/moco-*"))]
        shards = [str(path) for path in Path().glob("runs/shards-*")]
        names |= dict(zip(("moco-1234", "moco-5678"), made, strict=False))
        names |= {"runs/shards-1234abcd": shards[0], "runs/moco-1234abcd": f"runs/{made[0]}"} if made else {}
        done.append(run_typed(line, names))
    assert done == [
        *["run"] * 5, "show", "diff", "clean", "settings", "doctor", "report", "check", "parity", "embed", "export",
        "tensorboard", "pytest", "pytest",
    ]  # fmt: skip
    ranks = [bare(line) for line in launched.splitlines() if words(line)[2:3] in (["torchrun"], ["accelerate"])]
    assert len(ranks) == 2
    for i, line in enumerate(ranks):
        run_typed(f"{line} root=ranks{i} --only moco", {})
        assert [*Path().glob(f"ranks{i}/moco-*/artifact.json")]


@pytest.mark.slow
@pytest.mark.cluster
def test_jobs_are_sent_as_they_are_typed(tmp_path, monkeypatch):
    """To a Ray cluster of one machine, which packs."""
    monkeypatch.chdir(ROOT)
    cluster = Raylets(nodes=1)
    try:
        names = {"http://127.0.0.1:8265": cluster.url}
        typed = [line for line in section("Commands", "bash")[1].splitlines() if "--address" in line]
        assert len(typed) == 2
        for i, line in enumerate(typed):
            run_typed(f"{bare(line)} root={tmp_path}/{i} --only shards", names, cluster.env)
            assert [*tmp_path.glob(f"{i}/shards-*/artifact.json")]
    finally:
        cluster.close()


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
