"""The ops of audio_ops.py as their definitions read, for reference.py."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.graph import audio_ops as ir
from gemma_edge.converter.graph.values import Operand

Array = NDArray[np.floating[Any]]


class Machine(Protocol):
    """What has been computed so far."""

    def __getitem__(self, operand: Operand) -> Any:
        """The numbers of a value, a weight or a constant."""


def _cast(m: Machine, op: ir.Cast) -> NDArray[Any]:
    kind: type = np.bool_ if op.out.dtype == "bool" else np.float32
    x: NDArray[Any] = m[op.x]
    return x.astype(kind)


def _pad_rows(m: Machine, op: ir.PadRows) -> Array:
    x: Array = m[op.x]
    y = np.zeros(op.out.shape, x.dtype)
    y[:, : x.shape[1]] = x
    return y


def _cumulative_norm(m: Machine, op: ir.CumulativeNorm) -> Array:
    x: Array = m[op.x]
    counts = np.arange(1, x.shape[1] + 1).astype(x.dtype)[:, None, None]  # [T, 1, 1] steps so far

    def mean_so_far(y: Array) -> Array:
        mean: Array = np.cumsum(y.mean(axis=(2, 3), keepdims=True), axis=1) / counts  # [B, T, 1, 1]
        return mean

    difference = x - mean_so_far(x)
    variance = mean_so_far(difference * difference)
    y: Array = difference / np.sqrt(variance + x.dtype.type(op.eps)) * m[op.weight]
    return y


def _sliding_attention(m: Machine, op: ir.SlidingAttention) -> Array:
    q, k, v, valid = (m[x] for x in (op.q, op.k, op.v, op.valid))
    relative: Array = m[op.relative][0]  # [H, E, P + 1]
    out = np.zeros_like(q)
    for row, step in np.ndindex(q.shape[:2]):
        past = [s for s in range(max(0, step - op.past), step + 1) if valid[row, s] > 0]
        if not past:
            continue
        columns = [op.past - (step - s) for s in past]
        for head in range(q.shape[2]):
            query = q[row, step, head]
            scores = k[row, past, head] @ query + query @ relative[head][:, columns]
            scores = op.cap * np.tanh(scores / op.cap)
            weights = np.exp(scores - scores.max())
            out[row, step, head] = weights @ v[row, past, head] / weights.sum()
    result: Array = out
    return result


RUN: dict[type, Callable[[Any, Any], NDArray[Any]]] = {
    ir.Cast: _cast,
    ir.EveryNth: lambda m, op: m[op.x][:, :: op.step],
    ir.PadRows: _pad_rows,
    ir.CumulativeNorm: _cumulative_norm,
    ir.SlidingAttention: _sliding_attention,
}
