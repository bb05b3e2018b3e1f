"""The deliberate errors fit the code, and the tool that makes them tells noticed from survived."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutate import ROOT, copied, fits
from tests.mutations import MUTATIONS

TESTS = Path(__file__).parent


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_every_error_fits_the_code_and_names_its_tests(mutation):
    assert fits(mutation), f"{mutation.file} does not hold the text once: change it in tests/mutations.py"
    for test in mutation.tests.split():
        file, _, name = test.partition("::")
        assert f"def {name}" in (TESTS / file).read_text(), test


def test_errors_are_spread_and_named_once():
    assert len({m.name for m in MUTATIONS}) == len(MUTATIONS) >= 85
    assert {"data", "objectives", "nets", "views", "training", "sparse", "evaluation"} <= {
        m.path.parent.name for m in MUTATIONS
    }


TOOL = """
from tests import mutate, mutations
from tests.mutate import Mutation
keyed = "test_keyed.py::test_key_parts_are_separate"
true = mutations.MUTATIONS
mutations.MUTATIONS = (*true, Mutation("harmless", "keyed.py", "in O(1) memory. Fewer", "in O(1) space. Fewer", keyed),
                       Mutation("stale", "keyed.py", "no such text", "", keyed),
                       Mutation("lost", "keyed.py", "ROUNDS = 6", "ROUNDS = 5", "test_keyed.py::test_of_long_ago"))
print([mutate.main(["--only", *words]) for words in (
    ["three rounds for six", "affine: one shear", "queue: its place"], ["harmless"], ["stale"], ["lost"])])
"""


@pytest.mark.slow
def test_some_errors_for_real_and_what_is_not_noticed_is_said(tmp_path):
    """In a process of its own, which forks; this tree is as it was."""
    before = {p: p.read_bytes() for p in (ROOT / "pipeline").rglob("*.py")}
    done = subprocess.run([sys.executable, "-c", TOOL], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[0, 1, 2, 2]", done.stdout
    assert "3 of 3 noticed" in done.stdout and "SURVIVED  keyed.py: harmless" in done.stdout
    assert "their text is not in their file once: stale" in done.stdout
    assert {p: p.read_bytes() for p in (ROOT / "pipeline").rglob("*.py")} == before
    assert not list(copied(tmp_path).rglob("*.pyc"))
