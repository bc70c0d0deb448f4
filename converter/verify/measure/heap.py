"""Memory that was given back, kept for the next array.

numpy asks for memory for every result, and glibc gets what is large from the kernel and returns it at once: each page
is zeroed and mapped anew. On a virtual machine of two cores that takes five times as long as a multiplication of what
is in it.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
_LARGEST_BYTES: Final = 48 << 20  # a layer's activations of 1024 tokens; blocks of logits are larger, and rare
_KEPT_BYTES: Final = 192 << 20
_USUAL_BYTES: Final = 128 << 10  # mallopt(3)


@contextmanager
def kept_memory() -> Iterator[None]:
    """Until the end of the block; then all that is free goes back. Where malloc is not glibc's, nothing is done."""
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, _LARGEST_BYTES)
    libc.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _USUAL_BYTES)
        libc.mallopt(_TRIM_THRESHOLD, _USUAL_BYTES)
        libc.malloc_trim(0)


def give_back() -> None:
    """What is free now: something large of another kind comes next."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
