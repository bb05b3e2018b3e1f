"""The names that `pipeline` exports: this list, each documented, none imported before it is asked for."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline

ROOT = Path(__file__).parents[1]
NAMES = [
    "Batch", "ConfigError", "DataError", "Loader", "Network", "NetworkSettings", "Objective",
    "ObjectiveSettings", "PipelineError", "Shards", "Step", "Stream", "View", "ViewSettings", "World",
    "datasource", "embed", "load_config", "load_encoder", "load_model", "prepare", "run",
]  # fmt: skip
EXAMPLE = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text().split("## From Python")[1], re.S)


def test_the_names_are_these():
    assert sorted(pipeline.HOME) == NAMES
    assert set(NAMES) <= set(dir(pipeline))
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        pipeline.no_such_name  # noqa: B018


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_documented_where_it_stands_and_in_the_modules_list(name):
    assert len(inspect.getdoc(getattr(pipeline, name)) or "") > 20
    assert re.search(rf"\b{name}\b", pipeline.__doc__ or "")


def test_importing_the_package_imports_nothing_else():
    code = "import sys, pipeline; print([n for n in sys.modules if n.split('.')[0] in sys.argv[1:]])"
    words = [sys.executable, "-c", code, "pipeline", "torch", "numpy", "pydantic", "yaml", "ray"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['pipeline']"


def test_the_examples_of_the_readme_run(tmp_path, monkeypatch):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    assert EXAMPLE
    found: dict = {}
    for text in EXAMPLE:
        exec(compile(text, "README.md", "exec"), found)
    assert found["features"].shape[0] == 2 and found["folders"]["moco"].parent == Path("runs")


def test_a_run_that_fails_raises_the_error_of_its_exit_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = str(ROOT / "configs/quickstart.yaml")
    with pytest.raises(pipeline.ConfigError, match="a sweep"):
        pipeline.run(config, "seed=0,1")
    with pytest.raises(pipeline.ConfigError, match='did you mean "epochs"'):
        pipeline.run(config, "moco.epoch=1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(pipeline.DataError):
        pipeline.run(config, "shards.source=folder:empty", only=["shards"])
