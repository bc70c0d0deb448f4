"""The ops of patch_ops.py as their definitions read, for reference.py."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.graph import patch_ops as ir
from gemma_edge.converter.graph.reference_audio import Machine

Array = NDArray[np.floating[Any]]


def _position_rows(m: Machine, op: ir.PositionRows) -> Array:
    table: Array = m[op.table]
    positions = np.maximum(m[op.positions], 0)
    rows: Array = table[positions[..., 0]] + table[len(table) // 2 + positions[..., 1]]
    return rows


def _axial_angles(m: Machine, op: ir.AxialAngles) -> Array:
    quarter = op.out.shape[3] // 4
    frequencies = op.theta ** (-np.arange(quarter) / quarter)
    column, row = (m[op.positions][..., axis, None] * frequencies for axis in (0, 1))  # [B, N, Q]
    angles: Array = np.concatenate([-column, column, -row, row], -1)[:, :, None].astype(np.float32)
    return angles


def _full_attention(m: Machine, op: ir.FullAttention) -> Array:
    q, k, v, bias = (m[x] for x in (op.q, op.k, op.v, op.bias))
    out: Array = np.empty_like(q)
    for row, head in np.ndindex(q.shape[0], q.shape[2]):
        scores = q[row, :, head] @ k[row, :, head].T + bias[row]  # [N, N]
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[row, :, head] = weights @ v[row, :, head] / weights.sum(axis=1, keepdims=True)
    return out


def _pooling_weights(m: Machine, op: ir.PoolingWeights) -> Array:
    positions: NDArray[Any] = np.maximum(m[op.positions], 0)
    squares = (positions[..., 0].max(axis=1, keepdims=True) + 1) // op.size  # [B, 1], in a row of the image
    square = positions[..., 0] // op.size + squares * (positions[..., 1] // op.size)  # [B, N]
    pooled = np.arange(positions.shape[1] // op.size**2)[:, None]
    weights: Array = (square[:, None] == pooled).astype(np.float32) / np.float32(op.size**2)
    return weights


RUN: dict[type, Callable[[Any, Any], NDArray[Any]]] = {
    ir.PositionRows: _position_rows,
    ir.AxialAngles: _axial_angles,
    ir.FullAttention: _full_attention,
    ir.PoolingWeights: _pooling_weights,
}
