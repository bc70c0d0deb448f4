"""Graph -> TFLite: one function per op of the graph; the table at the end is the whole vocabulary."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from gemma_edge.converter.graph import draft_ops
from gemma_edge.converter.graph import ops as ir
from gemma_edge.converter.litert import audio as tflite_audio
from gemma_edge.converter.litert import conv as tflite_conv
from gemma_edge.converter.litert import patch as tflite_patch
from gemma_edge.converter.litert.attention import attention
from gemma_edge.converter.litert.drafting import cluster_logits, past_attention
from gemma_edge.converter.litert.file import Opcode, Phase, Tensor, TfliteFile
from gemma_edge.converter.litert.ops import I8, I32
from gemma_edge.converter.litert.signature import Signature
from gemma_edge.converter.litert.tied import with_rests
from gemma_edge.converter.plan.cache_layout import CacheLayout
from gemma_edge.converter.tensors import HEAD
from gemma_edge.runtime.formats.encoding import FACTOR, RESTS, Encoding

_UNARY = {
    "tanh": Opcode.TANH, "relu": Opcode.RELU, "sqrt": Opcode.SQRT, "sigmoid": Opcode.LOGISTIC, "cos": Opcode.COS,
    "sin": Opcode.SIN,
}  # fmt: skip


def emit(
    description: str,
    graphs: list[ir.Graph],
    encodings: Mapping[str, Encoding],
    layout: CacheLayout | None = None,
    next_file: TfliteFile | None = None,
) -> TfliteFile:
    """All signatures of one section. Weights used by several are stored once. `layout` where graphs have caches.

    next_file: see TfliteFile.
    """
    file = TfliteFile(description, next_file)
    for graph in graphs:
        Signature(file, graph, encodings, layout).emit(LOWER)
    return file


def _linear(s: Signature, op: ir.Linear) -> Tensor:
    static = s.static_scales(op)
    if static is None:
        return s.sub.fully_connected(s[op.x], s.stored(op.weight))
    return s.sub.fully_connected(s.levels[op.x], s.stored(op.weight), static.outputs)


def _static_range(s: Signature, op: ir.StaticRange) -> Tensor:
    """Integers for linear layers that multiply these, numbers for others; what such a layer gives is integers."""
    x = s[op.x]
    levels = s.levels[op.out] = x if x.type == I8 else s.sub.quantize(x, op.scale)
    return s.sub.dequantize(levels) if s.is_read_as_float(op.out) else levels


def _embed(s: Signature, op: ir.Embed) -> Tensor:
    rows = op.table.shape[0]
    ids = s.sub.reshape(s[op.ids], (math.prod(op.ids.shape),), Phase.PROLOGUE)
    zero = s.sub.constant(0, I32)
    known = s.sub.less(ids, s.sub.constant(rows, I32), Phase.PROLOGUE)
    ids = s.sub.maximum(s.sub.select(known, ids, zero, Phase.PROLOGUE), zero, Phase.PROLOGUE)
    table, refine = s.stored(op.table), None
    if table.encoding.kind == "rest":
        if table.encoding.bits:
            rests = replace(table, alias=f"{table.name}{RESTS}", turned=False)
            refine = partial(with_rests, s.sub, ids=ids, rests=rests)
        table = replace(s.stored(s.tensors[HEAD]), alias=table.name)
    found = s.sub.embedding_lookup(ids, table, refine)
    if op.table.factor != 1.0:
        found = s.sub.mul(found, s.sub.constant(op.table.factor, name=f"{op.table.name}{FACTOR}"))
    return s.sub.reshape(found, op.out.shape)


def _rms_norm(s: Signature, op: ir.RmsNorm) -> Tensor:
    x = s[op.x]
    mean_square = s.sub.mean(s.sub.mul(x, x))
    y = s.sub.mul(x, s.sub.unary(Opcode.RSQRT, s.sub.add(mean_square, s.sub.constant(op.eps))))
    return y if op.weight is None else s.sub.mul(y, s[op.weight])


def _rotate(s: Signature, op: ir.RopeRotate) -> Tensor:
    x = s[op.x]
    half = x.shape[-1] // 2
    angles = [positions.angles(op.rope, x.shape[-1]) for positions in s.streams]
    cos, sin = (s.sub.concat(parts, 1) for parts in zip(*angles, strict=True))
    swapped = s.sub.concat([s.sub.slice(x, -1, half, half), s.sub.slice(x, -1, 0, half)], -1)
    return s.sub.add(s.sub.mul(x, cos), s.sub.mul(swapped, sin))


def _attention(s: Signature, op: ir.Attention) -> Tensor:
    window, caches = op.cache.window, s.cache(op.cache)
    parts = zip(s.split(s[op.q], 1), caches, s.streams, strict=True)
    return s.sub.concat([attention(s.sub, q, cache, window, positions) for q, cache, positions in parts], 1)


def _past_attention(s: Signature, op: draft_ops.PastAttention) -> Tensor:
    [positions] = s.streams
    return past_attention(s.sub, s[op.q], s.past(op.past), op.past.window, positions)


def _cluster_logits(s: Signature, op: draft_ops.ClusterLogits) -> Tensor:
    tokens = s.sub.constant(op.tokens, I32)
    return cluster_logits(s.sub, s[op.x], s[op.clusters], s.stored(op.table), tokens, op.chosen)


def _hadamard(s: Signature, op: ir.Hadamard) -> Tensor:
    return s.sub.hadamard(s[op.x])


def _matmul(s: Signature, op: ir.MatMul) -> Tensor:
    return s.sub.batch_matmul(s[op.a], s[op.b])


def _binary(s: Signature, op: ir.Binary) -> Tensor:
    a, b = s[op.a], s[op.b]
    match op.name:
        case "add":
            return s.sub.add(a, b)
        case "sub":
            return s.sub.sub(a, b)
        case "mul":
            return s.sub.mul(a, b)
        case "div":
            return s.sub.div(a, b)
        case "maximum":
            return s.sub.maximum(a, b)
        case "minimum":
            return s.sub.minimum(a, b)


def _unary(s: Signature, op: ir.Unary) -> Tensor:
    return s.sub.gelu(s[op.x]) if op.name == "gelu" else s.sub.unary(_UNARY[op.name], s[op.x])


def _mean(s: Signature, op: ir.Mean) -> Tensor:
    return s.sub.mean(s[op.x])


def _reshape(s: Signature, op: ir.Reshape) -> Tensor:
    return s.sub.reshape(s[op.x], op.out.shape)


def _slice(s: Signature, op: ir.Slice) -> Tensor:
    return s.sub.slice(s[op.x], op.axis, op.start, op.out.shape[op.axis])


def _last_token(s: Signature, op: ir.LastToken) -> Tensor:
    return s.sub.slice(s[op.x], 1, op.x.shape[1] - 1, 1)


def _concat(s: Signature, op: ir.Concat) -> Tensor:
    return s.sub.concat([s[part] for part in op.parts], op.axis)


LOWER: dict[type, Callable[[Signature, Any], Tensor]] = {
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
    ir.LastToken: _last_token,
    ir.Hadamard: _hadamard,
    ir.StaticRange: _static_range,
    draft_ops.PastAttention: _past_attention,
    draft_ops.ClusterLogits: _cluster_logits,
    **tflite_audio.LOWER,
    **tflite_conv.LOWER,
    **tflite_patch.LOWER,
}
