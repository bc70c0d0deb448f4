"""Graph -> ONNX: one function per op of the graph; the table at the end is the whole vocabulary.

ONNX Runtime has one kernel for attention with its cache (GroupQueryAttention: causal mask, window, KV shared between
layers), one for RoPE and one for RMSNorm.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir

from gemma_edge.converter.graph import ops as ir
from gemma_edge.converter.onnx import audio as onnx_audio
from gemma_edge.converter.onnx import conv as onnx_conv
from gemma_edge.converter.onnx import patch as onnx_patch
from gemma_edge.converter.onnx.file import MICROSOFT, OnnxFile
from gemma_edge.converter.onnx.lowering import Lowering, Values
from gemma_edge.runtime.formats import hadamard
from gemma_edge.runtime.formats.encoding import Encoding

_UNARY = {"tanh": "Tanh", "relu": "Relu", "sqrt": "Sqrt", "sigmoid": "Sigmoid", "cos": "Cos", "sin": "Sin"}
_BINARY = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "maximum": "Max", "minimum": "Min"}


def _linear(s: Lowering, op: ir.Linear) -> onnx_ir.Value:
    static = op.weight.static
    return s.file.linear(s[op.x], s.stored(op.weight), is_rounded=static is not None and static.inputs > 0)


def _embed(s: Lowering, op: ir.Embed) -> onnx_ir.Value:
    zero = s.file.constant(0, np.int64)
    known = s.file.op("Less", s[op.ids], s.file.constant(op.table.shape[0], np.int64))
    ids = s.file.op("Max", s.file.op("Where", known, s[op.ids], zero), zero)
    return s.file.rows(s.stored(op.table), ids)


def _rms_norm(s: Lowering, op: ir.RmsNorm) -> onnx_ir.Value:
    weight = s.file.constant(np.ones(op.x.shape[-1])) if op.weight is None else s[op.weight]
    return s.file.op("SimplifiedLayerNormalization", s[op.x], weight, axis=-1, epsilon=op.eps, stash_type=1)


def _rotate(s: Lowering, op: ir.RopeRotate) -> onnx_ir.Value:
    cos, sin = s.positions.angles(op.rope, op.x.shape[-1])
    rows = s.positions.rows  # of cos and sin, which hold those of this run only
    rotated = s.file.op("RotaryEmbedding", s.flat(op.x), rows, cos, sin, domain=MICROSOFT)
    return s.file.op("Reshape", rotated, s.file.constant([0, 0, *op.out.shape[2:]], np.int64))


def _attention(s: Lowering, op: ir.Attention) -> onnx_ir.Value:
    out = s.cache(op.cache).attend(
        s, s.flat(op.q), num_heads=op.q.shape[2], scale=1.0, local_window_size=op.cache.window or -1
    )
    return s.file.op("Reshape", out, s.file.constant([0, 0, *op.out.shape[2:]], np.int64))


def _hadamard(s: Lowering, op: ir.Hadamard) -> onnx_ir.Value:
    *rows, columns = op.x.shape
    blocks = s.file.constant([*[0] * len(rows), columns // hadamard.BLOCK, hadamard.BLOCK], np.int64)
    turned = s.file.op("MatMul", s.file.op("Reshape", s[op.x], blocks), s.file.constant(hadamard.matrix()))
    return s.file.op("Reshape", turned, s.file.constant([*[0] * len(rows), columns], np.int64))


def _static_range(s: Lowering, op: ir.StaticRange) -> onnx_ir.Value:
    """Spelled out: of two pairs of QuantizeLinear and DequantizeLinear in a row, ONNX Runtime (1.31.1) makes one."""
    scale = s.file.constant(op.scale)
    levels = s.file.op("Round", s.file.op("Div", s[op.x], scale))  # ties to even
    return s.file.op("Mul", s.file.op("Clip", levels, s.file.constant(-128.0), s.file.constant(127.0)), scale)


def _matmul(s: Lowering, op: ir.MatMul) -> onnx_ir.Value:
    return s.file.op("MatMul", s[op.a], s[op.b])


def _binary(s: Lowering, op: ir.Binary) -> onnx_ir.Value:
    return s.file.op(_BINARY[op.name], s[op.a], s[op.b])


def _unary(s: Lowering, op: ir.Unary) -> onnx_ir.Value:
    if op.name == "gelu":
        return s.file.op("Gelu", s[op.x], approximate="tanh")
    return s.file.op(_UNARY[op.name], s[op.x])


def _mean(s: Lowering, op: ir.Mean) -> onnx_ir.Value:
    return s.file.op("ReduceMean", s[op.x], s.file.constant([-1], np.int64), keepdims=1)


def _reshape(s: Lowering, op: ir.Reshape) -> onnx_ir.Value:
    sizes = [0 if old == new else new for old, new in zip(op.x.shape, op.out.shape, strict=False)]  # 0: as it is
    sizes += op.out.shape[len(sizes) :]
    assert ir.ANY not in sizes, (op.x.shape, op.out.shape)
    return s.file.op("Reshape", s[op.x], s.file.constant(sizes, np.int64))


def _slice(s: Lowering, op: ir.Slice) -> onnx_ir.Value:
    bounds = ([op.start], [op.start + op.out.shape[op.axis]], [op.axis])
    return s.file.op("Slice", s[op.x], *(s.file.constant(bound, np.int64) for bound in bounds))


def _last_token(s: Lowering, op: ir.LastToken) -> onnx_ir.Value:
    return s.positions.last_token(s[op.x], op.x.shape)


def _concat(s: Lowering, op: ir.Concat) -> onnx_ir.Value:
    return s.file.op("Concat", *(s[part] for part in op.parts), axis=op.axis)


LOWER: dict[type, Callable[[Lowering, Any], onnx_ir.Value]] = {
    ir.Linear: _linear,
    ir.Embed: _embed,
    ir.RmsNorm: _rms_norm,
    ir.RopeRotate: _rotate,
    ir.Attention: _attention,
    ir.MatMul: _matmul,
    ir.Binary: _binary,
    ir.Unary: _unary,
    ir.Mean: _mean,
    ir.Reshape: _reshape,
    ir.Slice: _slice,
    ir.Concat: _concat,
    ir.Hadamard: _hadamard,
    ir.StaticRange: _static_range,
    ir.LastToken: _last_token,
    **onnx_audio.LOWER,
    **onnx_conv.LOWER,
    **onnx_patch.LOWER,
}


def lowered(
    file: OnnxFile, graph: ir.Graph, encodings: Mapping[str, Encoding], inputs: Values
) -> dict[str, onnx_ir.Value]:
    """Append a graph to a file; its outputs by name. inputs: what the graph's inputs are in the file."""
    return Lowering(file, graph, encodings, inputs).run(graph, LOWER)
