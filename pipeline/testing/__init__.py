"""The contract that every objective keeps, for one's own: purity, resume, ranks, accumulation, precision, energies.

    python -m pipeline.testing mine.yaml own               what the stage `own` trains, a line for each part
    CONTRACT                                               the parts by name, for `pytest.mark.parametrize`
    CONTRACT[name](case("mine.yaml", "own"))               one of them
    two_ranks_are_one(case("mine.yaml", "own"))            two processes over gloo, which takes some seconds

Each raises AssertionError, whose line says what was expected. None reads images: views are normal numbers.
"""

from pipeline.testing.cases import Case, case
from pipeline.testing.contract import CONTRACT
from pipeline.testing.ranks import two_ranks_are_one

__all__ = ["CONTRACT", "Case", "case", "two_ranks_are_one"]
