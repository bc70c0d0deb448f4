"""The ops of graph/patch_ops.py in TFLite: integers of positions first, then nothing but what XNNPACK takes.

Attention is written out head by head: the scores of 2520 patches are 25 MB in one head, and 300 MB in twelve.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from gemma_edge.converter.graph import patch_ops as ir
from gemma_edge.converter.litert.file import Opcode, Phase, Tensor
from gemma_edge.converter.litert.ops import BOOL, F32, I32, Options, Subgraph
from gemma_edge.converter.litert.signature import Signature


def _position_rows(s: Signature, op: ir.PositionRows) -> Tensor:
    sub, table = s.sub, s.stored(op.table)
    columns, rows = _columns_and_rows(sub, s[op.positions])
    rows = sub.add(rows, sub.constant(op.table.shape[0] // 2, I32), Phase.PROLOGUE)
    column, row = (
        sub.embedding_lookup(sub.reshape(x, (x.shape[1],), Phase.PROLOGUE), table) for x in (columns, rows)
    )  # [N, D]
    return sub.reshape(sub.add(column, row), op.out.shape)


def _axial_angles(s: Signature, op: ir.AxialAngles) -> Tensor:
    sub, quarter = s.sub, op.out.shape[3] // 4
    frequencies = op.theta ** (-np.arange(quarter) / quarter)
    both = sub.constant(np.concatenate([-frequencies, frequencies])[None, None])  # [1, 1, E / 2]
    positions = sub.cast(s[op.positions], F32, Phase.PROLOGUE)
    angles = [sub.mul(sub.slice(positions, 2, axis, 1), both) for axis in (0, 1)]  # [1, N, E / 2]
    return sub.reshape(sub.concat(angles, 2), op.out.shape)


def _full_attention(s: Signature, op: ir.FullAttention) -> Tensor:
    sub = s.sub
    batch, patches, heads, size = op.q.shape
    bias = sub.reshape(s[op.bias], (batch, 1, patches))
    mixed = []
    for head in range(heads):
        q, k, v = (sub.reshape(sub.slice(s[x], 2, head, 1), (batch, patches, size)) for x in (op.q, op.k, op.v))
        scores = sub.add(sub.batch_matmul(q, k, transpose_b=True), bias)  # [1, N, N]
        mixed.append(sub.reshape(sub.batch_matmul(sub.softmax(scores), v), (batch, patches, 1, size)))
    return sub.concat(mixed, 2)


def _pooling_weights(s: Signature, op: ir.PoolingWeights) -> Tensor:
    sub, pooled = s.sub, op.out.shape[1]
    columns, rows = _columns_and_rows(sub, s[op.positions])  # [1, N, 1]
    size = sub.constant(op.size, I32)
    last = sub.op(
        Opcode.REDUCE_MAX, [columns, sub.constant([1], I32)], (1, 1, 1), I32, Options.ReducerOptions,
        schema.ReducerOptionsT(keepDims=True), Phase.PROLOGUE,
    )  # fmt: skip
    squares = _divided(sub, sub.add(last, sub.constant(1, I32), Phase.PROLOGUE), size)  # in a row of the image
    above = sub.op(
        Opcode.MUL, [_divided(sub, rows, size), squares], rows.shape, I32, Options.MulOptions, schema.MulOptionsT(),
        Phase.PROLOGUE,
    )  # fmt: skip
    square = sub.add(above, _divided(sub, columns, size), Phase.PROLOGUE)
    square = sub.reshape(square, (1, 1, square.shape[1]), Phase.PROLOGUE)
    numbers = sub.constant(np.arange(pooled)[None, :, None], I32)
    belongs = sub.op(
        Opcode.EQUAL, [numbers, square], op.out.shape, BOOL, Options.EqualOptions, schema.EqualOptionsT(),
        Phase.PROLOGUE,
    )  # fmt: skip
    return sub.mul(sub.cast(belongs, F32, Phase.PROLOGUE), sub.constant(1 / op.size**2))


def _columns_and_rows(sub: Subgraph, positions: Tensor) -> tuple[Tensor, Tensor]:
    """int32 [1, N, 2] -> [1, N, 1] of each, 0 where there is none."""
    found = sub.maximum(positions, sub.constant(0, I32), Phase.PROLOGUE)
    return sub.slice(found, 2, 0, 1, Phase.PROLOGUE), sub.slice(found, 2, 1, 1, Phase.PROLOGUE)


def _divided(sub: Subgraph, x: Tensor, by: Tensor) -> Tensor:
    """Rounded down."""
    options = schema.FloorDivOptionsT()
    return sub.op(Opcode.FLOOR_DIV, [x, by], x.shape, I32, Options.FloorDivOptions, options, Phase.PROLOGUE)


LOWER: Mapping[type, Callable[[Any, Any], Tensor]] = {
    ir.PositionRows: _position_rows,
    ir.AxialAngles: _axial_angles,
    ir.FullAttention: _full_attention,
    ir.PoolingWeights: _pooling_weights,
}
