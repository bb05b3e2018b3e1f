"""numba where it is installed, so that loops over pixels and boxes run as machine code; plain Python where it is not.

Compiled once per machine (kept beside the source, or in the user's cache), without the GIL, and without the liberties
that would let a number depend on the CPU.
"""

from collections.abc import Callable
from typing import Any, TypeVar

try:
    import numba
except ImportError:
    numba: Any = None

F = TypeVar("F", bound=Callable)
AVAILABLE = numba is not None


def compiled(function: F) -> F:
    return function if numba is None else numba.njit(nogil=True, cache=True, error_model="numpy")(function)
