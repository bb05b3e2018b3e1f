"""Compiles loops over pixels and boxes by numba where it is installed; elsewhere they run as Python.

Functions are compiled once per machine (cached beside the source, or in the user's cache), release the GIL, and are
compiled without fast-math, so that results do not depend on the CPU. Where the cache is damaged or cannot be written,
functions are compiled again.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

try:
    import numba
except ImportError:
    numba: Any = None

F = TypeVar("F", bound=Callable)
AVAILABLE = numba is not None


class ForgivingCache:
    """numba's cache of a function on disk, whose errors are ignored; a damaged file is replaced."""

    def __init__(self, cache: Any):
        self.cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)

    def load_overload(self, sig: Any, context: Any) -> Any:
        try:
            return self.cache.load_overload(sig, context)
        except Exception:  # of unpickling, whatever the bytes say
            with suppress(Exception):
                self.cache.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(Exception):  # a full disk, a folder that became read-only
            self.cache.save_overload(sig, data)


def jit(**options: Any) -> Callable[[F], F]:
    """numba's compiler without the GIL, with a cache that may fail; raises ImportError without numba."""
    if numba is None:
        raise ImportError("numba is not installed")
    from numba.core.caching import FunctionCache

    def decorate(function: F) -> F:
        dispatcher = numba.njit(nogil=True, **options)(function)
        with suppress(RuntimeError):  # no folder can be written to: NUMBA_CACHE_DIR names one
            dispatcher._cache = ForgivingCache(FunctionCache(function))
        return dispatcher

    return decorate


def optional_jit(function: F) -> F:
    """The function compiled by numba where it is installed; otherwise the function itself."""
    return function if numba is None else jit(error_model="numpy")(function)
