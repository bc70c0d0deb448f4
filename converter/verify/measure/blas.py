"""Fewer threads of numpy beside a bundle that decodes.

OpenBLAS takes all cores and waits for work by spinning, on cores that the bundle needs: verifying 1,024 tokens of
Gemma 3 1B on two cores took 162 s of processor time instead of 115.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from gemma_edge.converter.evaluate.blas import blas_threads


@contextmanager
def spare_cores(cores: int, taken: int) -> Iterator[None]:
    """Until the end of the block multiply on what `taken` leaves of `cores`: on one at least, on no more than before.

    Another BLAS than OpenBLAS, or none that can be found, is left as it is.
    """
    threads = blas_threads()
    if threads is None:
        yield
        return
    before = threads.get()
    threads.set(min(before, max(1, cores - taken)))
    try:
        yield
    finally:
        threads.set(before)
