"""The ops of graph/audio_ops.py in ONNX, for any number of clips and of frames.

Shapes are known at run time only: B clips of T steps, U blocks of P steps.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir

from gemma_edge.converter.graph import audio_ops as ir
from gemma_edge.converter.onnx.file import BOOL, F32, OnnxFile
from gemma_edge.converter.onnx.lowering import Lowering

Value = onnx_ir.Value

_MASKED = 1e9  # taken from a score that must not count: exp of it is 0


def _cast(s: Lowering, op: ir.Cast) -> Value:
    return s.file.op("Cast", s[op.x], to=BOOL if op.out.dtype == "bool" else F32)


def _every_nth(s: Lowering, op: ir.EveryNth) -> Value:
    return _slice(s.file, s[op.x], 1, 0, None, op.step)


def _pad_rows(s: Lowering, op: ir.PadRows) -> Value:
    f, x = s.file, s[op.x]
    missing = f.op("Sub", f.constant([op.out.shape[1]], np.int64), _length(f, x, 1))
    return _pad(f, x, len(op.x.shape), 1, 0, missing)


def _cumulative_norm(s: Lowering, op: ir.CumulativeNorm) -> Value:
    f, x = s.file, s[op.x]
    difference = f.op("Sub", x, _mean_so_far(f, x))
    variance = _mean_so_far(f, f.op("Mul", difference, difference))
    deviation = f.op("Sqrt", f.op("Add", variance, f.constant(op.eps)))
    return f.op("Mul", f.op("Div", difference, deviation), s[op.weight])


def _mean_so_far(f: OnnxFile, x: Value) -> Value:
    """[B, T, F, C] -> [B, T, 1, 1], the mean over F, C and every step so far."""
    mean = f.op("ReduceMean", x, f.constant([2, 3], np.int64), keepdims=1)
    ones = f.op("ConstantOfShape", f.op("Shape", mean), value=onnx_ir.tensor(np.ones(1, np.float32)))
    axis = f.constant(1, np.int64)
    return f.op("Div", f.op("CumSum", mean, axis), f.op("CumSum", ones, axis))


def _sliding_attention(s: Lowering, op: ir.SlidingAttention) -> Value:
    """Queries in U blocks of P steps, each against the keys of its own block and of the one before it: 2P in all."""
    f, past = s.file, op.past
    _, _, heads, size = op.q.shape
    steps = _length(f, s[op.q], 1)
    padding = f.op("Mod", f.op("Neg", steps), f.constant([past], np.int64))  # to whole blocks; Mod is not negative

    q = _reshape(f, _pad(f, s[op.q], 4, 1, 0, padding), 0, -1, past, heads, size)  # [B, U, P, H, E]
    q = f.op("Transpose", q, perm=(0, 3, 1, 2, 4))  # [B, H, U, P, E]
    keys, values = (
        _with_past(f, _reshape(f, _pad(f, s[x], 4, 1, past, padding), 0, -1, past, heads, size)) for x in (op.k, op.v)
    )  # [B, U, 2P, H, E]
    by_content = f.op("MatMul", q, f.op("Transpose", keys, perm=(0, 3, 1, 4, 2)))  # [B, H, U, P, 2P]
    relative = f.op("Transpose", s[op.relative], perm=(1, 0, 2, 3))  # [H, 1, E, P + 1]
    scores = f.op("Add", by_content, _shifted(f, f.op("MatMul", q, relative), past))
    scores = f.op("Tanh", f.op("Mul", scores, f.constant(1 / op.cap)))
    scores = f.op("Add", f.op("Mul", scores, f.constant(op.cap)), _mask(f, s[op.valid], past, padding))
    y = f.op("MatMul", f.op("Softmax", scores, axis=-1), f.op("Transpose", values, perm=(0, 3, 1, 2, 4)))
    y = _reshape(f, f.op("Transpose", y, perm=(0, 2, 3, 1, 4)), 0, -1, heads, size)  # [B, U*P, H, E]
    return _slice(f, y, 1, 0, steps)


def _with_past(f: OnnxFile, blocks: Value) -> Value:
    """[B, 1 + U, P, ...], a block of zeros in front -> [B, U, 2P, ...], each block behind the one before it."""
    end = f.constant([-1], np.int64)
    return f.op("Concat", _slice(f, blocks, 1, 0, end), _slice(f, blocks, 1, 1, None), axis=2)


def _shifted(f: OnnxFile, x: Value, past: int) -> Value:
    """[B, H, U, P, P + 1] by distance -> [B, H, U, P, 2P] by key: row w moves w to the right.

    Rows of 2P + 1 read as rows of 2P begin one further left each (arXiv 1901.02860, appendix B).
    """
    wide = _pad(f, x, 5, 4, 0, f.constant([past], np.int64))
    flat = _slice(f, _reshape(f, wide, 0, 0, 0, -1), 3, 0, f.constant([2 * past * past], np.int64))
    return _reshape(f, flat, 0, 0, 0, past, 2 * past)


def _mask(f: OnnxFile, valid: Value, past: int, padding: Value) -> Value:
    """[B, T] of 0 and 1 -> [B, 1, U, P, 2P]: 0 where query w sees key c, w <= c <= w + P and valid, else -1e9."""
    keys = _with_past(f, _reshape(f, _pad(f, valid, 2, 1, past, padding), 0, -1, past))  # [B, U, 2P]
    keys = f.op("Unsqueeze", keys, f.constant([1, 3], np.int64))  # [B, 1, U, 1, 2P]
    w, c = np.ogrid[:past, : 2 * past]
    reached = (w <= c) & (c <= w + past)
    return f.op("Sub", f.op("Mul", keys, f.constant(reached * _MASKED)), f.constant(_MASKED))


def _length(f: OnnxFile, x: Value, axis: int) -> Value:
    """[1] int64."""
    return f.op("Gather", f.op("Shape", x), f.constant([axis], np.int64))


def _pad(f: OnnxFile, x: Value, rank: int, axis: int, before: int, after: Value) -> Value:
    """Zeros before and, [1] int64 of them, after the entries of one axis."""
    front = f.constant([before if i == axis else 0 for i in range(rank)] + [0] * axis, np.int64)
    back = f.constant([0] * (rank - 1 - axis), np.int64)
    return f.op("Pad", x, f.op("Concat", front, after, back, axis=0))


def _reshape(f: OnnxFile, x: Value, *sizes: int) -> Value:
    """0: as it is; -1: what is left."""
    return f.op("Reshape", x, f.constant(sizes, np.int64))


def _slice(f: OnnxFile, x: Value, axis: int, start: int, end: Value | None, step: int = 1) -> Value:
    last = f.constant([np.iinfo(np.int64).max], np.int64) if end is None else end
    first, axes, steps = (f.constant([number], np.int64) for number in (start, axis, step))
    return f.op("Slice", x, first, last, axes, steps)


LOWER: Mapping[type, Callable[[Any, Any], Value]] = {
    ir.Cast: _cast,
    ir.EveryNth: _every_nth,
    ir.PadRows: _pad_rows,
    ir.CumulativeNorm: _cumulative_norm,
    ir.SlidingAttention: _sliding_attention,
}
