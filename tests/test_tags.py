"""Every tag that is written is declared, and documented as it is declared."""

import ast
from pathlib import Path

import pytest
import torch

from pipeline import charts, tags
from pipeline.training import monitor
from tests import cases

ROOT = Path(__file__).parent.parent


def test_the_docs_are_the_declaration():
    """`python -m pipeline.tags > docs/tags.md` writes them anew."""
    assert (ROOT / "docs" / "tags.md").read_text() == tags.markdown()


def test_each_says_what_it_is_in_a_sentence_with_its_unit():
    every = [tag for names in tags.TAGS.values() for tag in names.values()]
    assert all(tag.text.endswith(".") and tag.unit for tag in every)
    assert "Unit: steps. Healthy: level." in tags.describe("learn/queue_age")
    assert tags.find("learn/nothing") is None and tags.describe("learn/nothing") == ""


@pytest.mark.parametrize("path", sorted((ROOT / "pipeline").rglob("*.py")), ids=lambda p: p.stem)
def test_a_tag_in_the_code_is_declared(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            family, slash, name = node.value.partition("/")
            if slash and family in tags.TAGS and name.isidentifier() and not name.endswith("_"):
                assert tags.find(node.value), f"{path.name}: {node.value}"


def test_a_chart_shows_what_is_declared():
    for group in charts.SECTIONS.values():
        for chart in group:
            assert all(map(tags.find, chart.tags)), chart.title


def test_a_chart_stands_only_where_it_has_something_to_show():
    moco, vae = {"learn/loss", "learn/accuracy", "collapse/std"}, {"learn/loss", "vae/elbo"}
    shown = charts.sections([moco])
    assert [c.tags for c in shown["Is it learning?"]] == [("learn/loss",), ("learn/accuracy",)]
    both = charts.sections([moco, vae])
    assert [c.tags for c in both["Is it learning?"]] == [("learn/accuracy",)]  # no axis for two families' losses
    assert charts.sections([set()]) == {}


@pytest.mark.parametrize("name", cases.CASES)
def test_what_an_objective_writes_is_declared(name, world):
    objective = cases.make(name, world, dtype=torch.float32)
    batch = cases.batch(objective, list(range(16)), step=49, dtype=torch.float32)
    result = objective(batch)
    written = monitor.step_scalars(objective, result, batch, torch.tensor(1.0), 0.1, world)
    assert [tag for tag in written if tags.find(tag) is None] == []
