"""Rows turned by a Hadamard matrix, block by block: what spreads a large value of a block over all of it.

Int8 and int4 give a row, or a block of it, levels between its extremes; one large column costs all others their
resolution. With H the Sylvester Hadamard matrix of 64, whose entries are 1/8 and -1/8, H H = 1, so that

    x W^T = (x H) (W H)^T

for inputs x and a matrix W whose columns are both taken 64 at a time: the same product, of numbers without outliers
(QuIP#, arXiv 2402.04396; QuaRot, arXiv 2404.00456). Weights are turned once, at conversion, and inputs when they are
multiplied; a table is turned back after its rows are looked up.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

BLOCK = 64
"""Columns that are mixed. On Gemma 3 270M, KL of int8 activations: .093 nats without, .020 with blocks of 32, .013 with
64, .009 with 128. Turning takes as many products as columns of a block; and 1/8, unlike 128's entries, is exact."""

SUFFIX = ".hadamard"
"""Ends the name of a stored weight whose columns are turned."""

_BITS = 17
"""Of a value, when it is turned exactly: a sum of 64 such numbers has 23 bits, which float32 holds."""
_BLOCK_VALUES = 1 << 18  # worked on at a time: they stay in L2
_ROWS = 32
"""Blocks of one product. OpenBLAS puts larger ones on threads of its own, see converter/quantize/clip_search.py."""


@cache
def matrix() -> Float32:
    """H, [64, 64]; symmetric and its own inverse."""
    h = np.ones((1, 1), np.float32)
    while len(h) < BLOCK:
        h = np.block([[h, h], [h, -h]])
    h /= np.float32(BLOCK**0.5)
    h.flags.writeable = False
    return h


def turn(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """`values` [..., K], K a multiple of 64, with every block of columns turned; in their own dtype, a new array."""
    blocks = values.reshape(*values.shape[:-1], -1, BLOCK)
    turned: NDArray[np.floating] = (blocks @ matrix().astype(values.dtype, copy=False)).reshape(values.shape)
    return turned


def turn_exactly(rows: Float32) -> Float32:
    """`rows` [n, K], turned in place and returned: the same bits on every machine, whatever the order of sums.

    Values are first rounded to 17 bits below the largest of their row, an error of 2^-18 of that (int8 makes 2^-8).
    """
    step = max(1, _BLOCK_VALUES // max(1, rows.shape[1]))
    for first in range(0, len(rows), step):
        _turn_exactly(rows[first : first + step])
    return rows


def _turn_exactly(rows: Float32) -> None:
    largest = np.maximum(rows.max(axis=1, initial=0), -rows.min(axis=1, initial=0))
    _, exponents = np.frexp(largest)
    steps = np.ldexp(np.float32(1), np.clip(exponents - _BITS, -126, 126))[:, np.newaxis]
    scaled = rows * (np.float32(1) / steps)
    np.rint(scaled, out=scaled)
    flat, turned = scaled.reshape(-1, BLOCK), rows.reshape(-1, BLOCK)  # which is a view: rows are contiguous
    whole = len(flat) // _ROWS * _ROWS
    np.matmul(flat[:whole].reshape(-1, _ROWS, BLOCK), matrix(), out=turned[:whole].reshape(-1, _ROWS, BLOCK))
    np.matmul(flat[whole:], matrix(), out=turned[whole:])
    rows *= steps
