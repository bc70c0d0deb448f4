"""The ops of graph/audio_ops.py in TFLite, of nothing but what XNNPACK takes, so that an encoder is one partition.

XNNPACK has neither CUMSUM nor strides in STRIDED_SLICE, and at most four axes. A running sum is a product with a
triangular matrix; every n-th entry is the first column of rows of n; a sliding window is two blocks of a fixed grid.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gemma_edge.converter.graph import audio_ops as ir
from gemma_edge.converter.litert.attention import HIDDEN
from gemma_edge.converter.litert.file import Opcode, Phase, Tensor
from gemma_edge.converter.litert.ops import BOOL, F32, Subgraph
from gemma_edge.converter.litert.signature import Signature


def _cast(s: Signature, op: ir.Cast) -> Tensor:
    """Masks come in before, and go out after, all that XNNPACK computes."""
    if op.out.dtype == "bool":
        return s.sub.cast(s[op.x], BOOL, Phase.EPILOGUE)
    return s.sub.cast(s[op.x], F32, Phase.PROLOGUE)


def _every_nth(s: Signature, op: ir.EveryNth) -> Tensor:
    """[B, T, ...] -> [B, T / n, n * ...], of which the first of n is left."""
    x = s[op.x]
    assert x.shape[1] % op.step == 0, (x.shape, op.step)
    row = int(np.prod(x.shape[2:], dtype=np.int64))
    groups = s.sub.reshape(x, (x.shape[0], x.shape[1] // op.step, op.step * row))
    return s.sub.reshape(s.sub.slice(groups, 2, 0, row), op.out.shape)


def _pad_rows(s: Signature, op: ir.PadRows) -> Tensor:
    return s.sub.pad(s[op.x], 1, 0, op.out.shape[1] - op.x.shape[1])


def _cumulative_norm(s: Signature, op: ir.CumulativeNorm) -> Tensor:
    sub, x = s.sub, s[op.x]
    difference = sub.sub(x, _mean_so_far(sub, x))
    variance = _mean_so_far(sub, sub.mul(difference, difference))
    scale = sub.unary(Opcode.RSQRT, sub.add(variance, sub.constant(op.eps)))
    return sub.mul(sub.mul(difference, scale), s[op.weight])


def _mean_so_far(sub: Subgraph, x: Tensor) -> Tensor:
    """[1, T, F, C] -> [1, T, 1, 1], the mean over F, C and every step so far.

    T is a grid of N rows of M steps: sums within a row, plus the sums of the rows before.
    """
    _, steps, bins, channels = x.shape
    columns = max(m for m in range(1, int(steps**0.5) + 1) if steps % m == 0)
    rows = steps // columns
    y = sub.reshape(sub.mean(sub.reshape(x, (1, 1, steps, bins * channels))), (1, 1, rows, columns))
    within = sub.batch_matmul(y, sub.constant(np.triu(np.ones((1, 1, columns, columns)))))  # [1, 1, N, M]
    totals = sub.reshape(sub.slice(within, 3, columns - 1, 1), (1, 1, 1, rows))
    before = sub.batch_matmul(totals, sub.constant(np.triu(np.ones((1, 1, rows, rows)), 1)))  # [1, 1, 1, N]
    sums = sub.add(within, sub.reshape(before, (1, 1, rows, 1)))
    counts = np.arange(1, steps + 1).reshape(1, 1, rows, columns)
    return sub.reshape(sub.mul(sums, sub.constant(1 / counts)), (1, steps, 1, 1))


def _sliding_attention(s: Signature, op: ir.SlidingAttention) -> Tensor:
    """Queries in U blocks of P steps, each against the keys of its own block and of the one before it: 2P in all."""
    sub = s.sub
    _, steps, heads, size = op.q.shape
    grid = _Grid(steps, op.past)
    q = _heads_first(sub, sub.pad(s[op.q], 1, 0, grid.padding))  # [1, H, U*P, E]
    keys, values = (
        grid.with_past(sub, _heads_first(sub, sub.pad(s[x], 1, op.past, grid.padding))) for x in (op.k, op.v)
    )

    by_position = sub.batch_matmul(q, sub.weight(s.stored(op.relative)))  # [1, H, U*P, P + 1]
    by_content = sub.batch_matmul(sub.reshape(q, (heads, grid.blocks, op.past, size)), keys, transpose_b=True)
    scores = sub.add(by_content, grid.shifted(sub, by_position))  # [H, U, P, 2P]
    scores = sub.unary(Opcode.TANH, sub.mul(scores, sub.constant(1 / op.cap)))
    scores = sub.add(sub.mul(scores, sub.constant(op.cap)), grid.mask(sub, s[op.valid]))
    y = sub.batch_matmul(sub.softmax(scores), values)  # [H, U, P, E]
    y = sub.reshape(y, (1, heads, grid.blocks * op.past, size))
    return sub.slice(sub.transpose(y, (0, 2, 1, 3)), 1, 0, steps)


def _heads_first(sub: Subgraph, x: Tensor) -> Tensor:
    """[1, T, H, E] -> [1, H, T, E]."""
    return sub.transpose(x, (0, 2, 1, 3))


class _Grid:
    """T steps as U blocks of P, the last one padded."""

    def __init__(self, steps: int, past: int) -> None:
        self._past = past
        self.blocks = -(-steps // past)
        self.padding = self.blocks * past - steps

    def with_past(self, sub: Subgraph, x: Tensor) -> Tensor:
        """[1, H, P + U*P, E], a block of zeros in front -> [H, U, 2P, E], each block behind the one before it."""
        _, heads, _, size = x.shape
        blocks = sub.reshape(x, (heads, self.blocks + 1, self._past, size))
        return sub.concat([sub.slice(blocks, 1, first, self.blocks) for first in (0, 1)], 2)

    def shifted(self, sub: Subgraph, x: Tensor) -> Tensor:
        """[1, H, U*P, P + 1] by distance -> [H, U, P, 2P] by key: row w moves w to the right.

        Rows of 2P + 1 read as rows of 2P begin one further left each (arXiv 1901.02860, appendix B).
        """
        _, heads, _, columns = x.shape
        width = 2 * self._past
        wide = sub.pad(sub.reshape(x, (heads, self.blocks, self._past, columns)), 3, 0, width + 1 - columns)
        flat = sub.reshape(wide, (heads, self.blocks, self._past * (width + 1)))
        return sub.reshape(sub.slice(flat, 2, 0, self._past * width), (heads, self.blocks, self._past, width))

    def mask(self, sub: Subgraph, valid: Tensor) -> Tensor:
        """[1, T] of 0 and 1 -> [1, U, P, 2P]: 0 where query w sees key c, w <= c <= w + P and valid, else -1e9."""
        padded = sub.pad(valid, 1, self._past, self.padding)
        keys = self.with_past(sub, sub.reshape(padded, (1, 1, (self.blocks + 1) * self._past, 1)))  # [1, U, 2P, 1]
        keys = sub.reshape(keys, (1, self.blocks, 1, 2 * self._past))
        w, c = np.ogrid[: self._past, : 2 * self._past]
        reached = ((w <= c) & (c <= w + self._past))[None, None]  # [1, 1, P, 2P]
        seen = sub.mul(keys, sub.constant(reached * -HIDDEN))
        return sub.sub(seen, sub.constant(-HIDDEN))


LOWER: Mapping[type, Callable[[Any, Any], Tensor]] = {
    ir.Cast: _cast,
    ir.EveryNth: _every_nth,
    ir.PadRows: _pad_rows,
    ir.CumulativeNorm: _cumulative_norm,
    ir.SlidingAttention: _sliding_attention,
}
