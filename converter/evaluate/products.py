"""Products of large matrices on all cores, whatever else runs there.

OpenBLAS, which numpy comes with, has threads of its own, which wait for each other in loops: where a core is taken by
something else, or where several threads of ours multiply, most of the time goes into waiting (calibrating the 270M took
470 s of processor time instead of 120 on a busy machine). `one_thread_each` keeps a product on the thread that asks for
it; `product` and `gram` divide large ones between threads that sleep while they wait.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from threading import Lock
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.evaluate.blas import blas_threads

Float32 = NDArray[np.float32]

CORES: Final = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_WORTH_DIVIDING: Final = 1 << 24
"""Multiplications: a fifth of a millisecond."""


def product(a: Float32, b: Float32, out: Float32 | None = None) -> Float32:
    """a @ b, [m, k] by [k, n]; in `out` if one is given."""
    (m, k), n = a.shape, b.shape[1]
    if out is None:
        out = np.empty((m, n), np.float32)
    if m * k * n < _WORTH_DIVIDING or CORES == 1:
        return np.matmul(a, b, out=out)
    if m >= n:
        _together([partial(np.matmul, a[part], b, out=out[part]) for part in _parts(m)])
    else:
        _together([partial(np.matmul, a, b[:, part], out=out[:, part]) for part in _parts(n)])
    return out


def gram(x: Float32) -> Float32:
    """x.T @ x, [k, k], of which BLAS computes only half; so do we, in blocks."""
    tokens, k = x.shape
    if tokens * k * k < 2 * _WORTH_DIVIDING or CORES == 1:
        plain: Float32 = x.T @ x
        return plain
    found = np.empty((k, k), np.float32)
    half = k // 2
    left, right = x[:, :half], x[:, half:]

    def corners() -> None:
        np.matmul(left.T, left, out=found[:half, :half])
        np.matmul(right.T, right, out=found[half:, half:])

    def side(part: slice) -> None:
        np.matmul(left[:, part].T, right, out=found[part, half:])
        found[half:, part] = found[part, half:].T

    _together([corners, *(partial(side, part) for part in _parts(half, max(1, CORES - 1)))])
    return found


@contextmanager
def one_thread_each() -> Iterator[None]:
    """No threads of BLAS while the block runs, in the whole process; with another BLAS than OpenBLAS, no change."""
    with _alone.lock:
        if _alone.blocks == 0:
            _alone.threads = _blas_threads(1)
        _alone.blocks += 1
    try:
        yield
    finally:
        with _alone.lock:
            _alone.blocks -= 1
            if _alone.blocks == 0 and _alone.threads:
                _blas_threads(_alone.threads)


@dataclass
class _Alone:
    """blocks: of `one_thread_each` that run now, in any thread. threads: that BLAS had before the first."""

    lock: Lock = field(default_factory=Lock)
    blocks: int = 0
    threads: int = 0


_alone = _Alone()


def _parts(size: int, count: int = CORES) -> list[slice]:
    step = -(-size // count)
    return [slice(first, min(first + step, size)) for first in range(0, size, step)]


def _together(tasks: list[Callable[[], Any]]) -> None:
    """The first on this thread."""
    with one_thread_each():
        others = [_pool().submit(task) for task in tasks[1:]]
        try:
            tasks[0]()
        finally:
            for other in others:
                other.result()


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(CORES, thread_name_prefix="product")


def _blas_threads(count: int) -> int:
    """Set the number of threads; what it was, or 0 where there is nothing to set."""
    threads = blas_threads()
    if threads is None:
        return 0
    before = threads.get()
    threads.set(count)
    return before
