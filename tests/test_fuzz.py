"""A few of the changes that `python -m tests.fuzz` makes by the thousand."""

import random

import pytest

from tests import fuzz


@pytest.mark.parametrize(("kind", "count"), [(fuzz.configs, 300), (fuzz.checkpoints, 150), (fuzz.indexes, 60)])
def test_what_was_changed_at_random_is_refused_in_a_line_or_unhurt(kind, count):
    found = kind(count, random.Random(7))
    assert sum(found.values()) == count and len(found) == 2
