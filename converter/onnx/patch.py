"""The ops of graph/patch_ops.py in ONNX, for any number of images and of patches.

Attention is written out head by head, as in litert/patch.py, to keep the scores of all heads from being in memory.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir

from gemma_edge.converter.graph import patch_ops as ir
from gemma_edge.converter.onnx.file import F32, OnnxFile
from gemma_edge.converter.onnx.lowering import Lowering

Value = onnx_ir.Value


def _position_rows(s: Lowering, op: ir.PositionRows) -> Value:
    f, table = s.file, s.file.plain(s.stored(op.table))
    columns, rows = _columns_and_rows(f, s[op.positions])
    rows = f.op("Add", rows, f.constant(op.table.shape[0] // 2, np.int64))
    return f.op("Add", f.op("Gather", table, columns, axis=0), f.op("Gather", table, rows, axis=0))


def _axial_angles(s: Lowering, op: ir.AxialAngles) -> Value:
    f, quarter = s.file, op.out.shape[3] // 4
    frequencies = op.theta ** (-np.arange(quarter) / quarter)
    both = f.constant(np.concatenate([-frequencies, frequencies])[None, None, None])  # [1, 1, 1, E / 2]
    positions = f.op("Cast", s[op.positions], to=F32)
    positions = f.op("Unsqueeze", positions, f.constant([3], np.int64))  # [B, N, 2, 1]
    angles = f.op("Mul", positions, both)  # [B, N, 2, E / 2]
    return f.op("Reshape", angles, f.constant([0, 0, 1, 4 * quarter], np.int64))


def _full_attention(s: Lowering, op: ir.FullAttention) -> Value:
    f, heads = s.file, op.q.shape[2]
    bias = f.op("Unsqueeze", s[op.bias], f.constant([1], np.int64))  # [B, 1, N]
    axis = f.constant([2], np.int64)
    mixed = []
    for head in range(heads):
        which = f.constant(head, np.int64)
        q, k, v = (f.op("Gather", s[x], which, axis=2) for x in (op.q, op.k, op.v))  # [B, N, E]
        scores = f.op("Add", f.op("MatMul", q, f.op("Transpose", k, perm=(0, 2, 1))), bias)  # [B, N, N]
        mixed.append(f.op("Unsqueeze", f.op("MatMul", f.op("Softmax", scores, axis=-1), v), axis))
    return f.op("Concat", *mixed, axis=2)


def _pooling_weights(s: Lowering, op: ir.PoolingWeights) -> Value:
    f = s.file
    columns, rows = _columns_and_rows(f, s[op.positions])  # [B, N]
    size, one, axis = (f.constant(x, np.int64) for x in (op.size, 1, [1]))
    squares = f.op("Div", f.op("Add", f.op("ReduceMax", columns, axis, keepdims=1), one), size)  # [B, 1], of a row
    square = f.op("Add", f.op("Mul", f.op("Div", rows, size), squares), f.op("Div", columns, size))
    patches = f.op("Gather", f.op("Shape", columns), one, axis=0)
    pooled = f.op("Div", patches, f.constant(op.size**2, np.int64))
    numbers = f.op("Range", f.constant(0, np.int64), pooled, one)  # [M]
    belongs = f.op("Equal", f.op("Unsqueeze", numbers, axis), f.op("Unsqueeze", square, axis))  # [B, M, N]
    return f.op("Mul", f.op("Cast", belongs, to=F32), f.constant(1 / op.size**2))


def _columns_and_rows(f: OnnxFile, positions: Value) -> tuple[Value, Value]:
    """[B, N, 2] -> [B, N] of each, 0 where there is none."""
    found = f.op("Max", positions, f.constant(0, np.int64))
    column, row = (f.op("Gather", found, f.constant(axis, np.int64), axis=2) for axis in (0, 1))
    return column, row


LOWER: Mapping[type, Callable[[Any, Any], Value]] = {
    ir.PositionRows: _position_rows,
    ir.AxialAngles: _axial_angles,
    ir.FullAttention: _full_attention,
    ir.PoolingWeights: _pooling_weights,
}
