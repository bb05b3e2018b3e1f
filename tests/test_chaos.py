"""Fifteen faults, one after another; three hundred by `python -m tests.chaos --full`."""

import subprocess
import sys

import pytest

from tests import small


@pytest.mark.slow
def test_struck_again_and_again_it_ends_as_if_nothing_had_happened():
    """In a process of its own, since every start is a fork of it."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos"], cwd=small.ROOT, env=small.alone(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "15 faults" in done.stdout and "accepted 0" in done.stdout
