"""The number of threads that numpy multiplies on."""

import ctypes
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

_MAPS: Final = Path("/proc/self/maps")
_PREFIXES: Final = ("scipy_openblas", "openblas")
_SUFFIXES: Final = ("64_", "_64", "")


class BlasThreads(NamedTuple):
    """get: how many there are. set: how many from now on, in the whole process."""

    get: Callable[[], int]
    set: Callable[[int], None]


@lru_cache(maxsize=1)
def blas_threads() -> BlasThreads | None:
    """Of OpenBLAS, by the names that its builds give the two functions; None with another BLAS."""
    for path in _libraries():
        library = ctypes.CDLL(path)
        for prefix in _PREFIXES:
            for suffix in _SUFFIXES:
                names = (f"{prefix}_get_num_threads{suffix}", f"{prefix}_set_num_threads{suffix}")
                if all(hasattr(library, name) for name in names):
                    return BlasThreads(getattr(library, names[0]), getattr(library, names[1]))
    return None


def _libraries() -> list[str]:
    """Of OpenBLAS: what this process has loaded; where the system does not tell, what numpy's wheel brings."""
    try:
        lines = _MAPS.read_text().splitlines()
    except OSError:  # not Linux
        return sorted(str(path) for path in (Path(np.__file__).parents[1] / "numpy.libs").glob("*openblas*"))
    return sorted({line.split(maxsplit=5)[-1] for line in lines if "openblas" in line})
