"""How many threads numpy multiplies with.

OpenBLAS takes all cores and waits for work by spinning: beside a bundle that decodes, its threads take the cores that
the bundle needs: verifying 1,024 tokens of Gemma 3 1B on two cores took 162 s of processor time instead of 115.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_MAPS = Path("/proc/self/maps")
_PREFIXES, _SUFFIXES = ("scipy_openblas", "openblas"), ("64_", "_64", "")


@contextmanager
def spare_cores(cores: int, taken: int) -> Iterator[None]:
    """Until the end of the block multiply on what `taken` leaves of `cores`: on one at least, on no more than before.

    Another BLAS than OpenBLAS, or none that can be found, is left as it is.
    """
    found = _functions()
    if found is None:
        yield
        return
    get, put = found
    before = get()
    put(min(before, max(1, cores - taken)))
    try:
        yield
    finally:
        put(before)


def _functions() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """OpenBLAS's two, by the names that its builds give them."""
    try:
        lines = _MAPS.read_text().splitlines()
    except OSError:  # not Linux
        return None
    for path in {line.split(maxsplit=5)[-1] for line in lines if "openblas" in line}:
        library = ctypes.CDLL(path)
        for prefix in _PREFIXES:
            for suffix in _SUFFIXES:
                names = (f"{prefix}_get_num_threads{suffix}", f"{prefix}_set_num_threads{suffix}")
                if all(hasattr(library, name) for name in names):
                    return getattr(library, names[0]), getattr(library, names[1])
    return None
