"""Runs a Graph in numpy: slow, obvious, an oracle for emitters.

No cache layout, no masks added to scores, no fused anything: each op as its definition reads. Float32 throughout, or
float64 when the weights are, which tells rounding from mistakes.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.graph import draft_ops, reference_audio, reference_conv, reference_patch
from gemma_edge.converter.graph import ops as ir
from gemma_edge.runtime.formats import hadamard

Array = NDArray[np.floating[Any]]
Past = dict[int, tuple[Array, Array]]
"""Keys and values by owning layer, each [positions, K, E]."""


def run(
    graph: ir.Graph,
    weights: Mapping[str, Array],
    inputs: Mapping[str, NDArray[Any]],
    past: Past,
) -> dict[str, Array]:
    """Run one signature and append its rows to `past`; positions go on where `past` ends.

    weights: by the graph's tensor names, already folded. inputs: by name, shaped as declared.
    """
    position = len(next(iter(past.values()))[0]) if past else 0
    machine = _Machine(graph, weights, past, position)
    for name, value in graph.inputs.items():
        assert inputs[name].shape == value.shape, (name, inputs[name].shape, value.shape)
        machine.values[value] = inputs[name]
    for op in graph.ops:
        machine.values[op.out] = RUN[type(op)](machine, op)
        assert machine.values[op.out].shape == op.out.shape, op
    for cache in graph.caches.values():
        past[cache.layer] = machine.seen(cache)
    return {name: machine.values[value] for name, value in graph.outputs.items()}


class _Machine:
    def __init__(self, graph: ir.Graph, weights: Mapping[str, Array], past: Past, position: int) -> None:
        self.values: dict[ir.Value, NDArray[Any]] = {}
        self.weights = weights
        self.positions = position + np.arange(graph.tokens)
        self._past = past

    def __getitem__(self, operand: ir.Operand) -> Any:
        if isinstance(operand, ir.Value):
            return self.values[operand]
        return operand if isinstance(operand, float) else self.weights[operand.name]

    def past_of(self, past: draft_ops.Past) -> tuple[Array, Array]:
        """Keys and values before this run, [positions, K, E]."""
        return self._past[past.layer]

    def seen(self, cache: ir.KVCache) -> tuple[Array, Array]:
        """Past and present keys and values, [positions, K, E]."""
        k, v = self.values[cache.k][0], self.values[cache.v][0]
        if cache.layer not in self._past:
            return k, v
        old_k, old_v = self._past[cache.layer]
        return np.concatenate([old_k, k]), np.concatenate([old_v, v])


def _embed(m: _Machine, op: ir.Embed) -> Array:
    ids = m[op.ids]
    table: Array = m[op.table]
    return table[np.where((ids >= 0) & (ids < len(table)), ids, 0)] * table.dtype.type(op.table.factor)


def _rms_norm(m: _Machine, op: ir.RmsNorm) -> Array:
    x: Array = m[op.x]
    y: Array = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + x.dtype.type(op.eps))
    return y if op.weight is None else y * m[op.weight]


def _rotate(m: _Machine, op: ir.RopeRotate) -> Array:
    x: Array = m[op.x]
    half = x.shape[-1] // 2
    frequency = op.rope.theta ** (-np.arange(half) / half) / op.rope.factor
    frequency[int(op.rope.share * half) :] = 0
    angle = (m.positions[:, None] * frequency).astype(x.dtype)[:, None, :]  # [T, 1, E/2]
    left, right = x[..., :half], x[..., half:]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], -1)


def _attention(m: _Machine, op: ir.Attention) -> Array:
    q: Array = m[op.q][0]  # [T, H, E]
    k, v = m.seen(op.cache)  # [S, K, E]
    out = np.empty_like(q)
    for row, position in enumerate(m.positions):
        first = 0 if op.cache.window is None else max(0, position + 1 - op.cache.window)
        out[row] = _attend(q[row], k[first : position + 1], v[first : position + 1])
    return out[None]


def _past_attention(m: _Machine, op: draft_ops.PastAttention) -> Array:
    k, v = m.past_of(op.past)
    first = 0 if op.past.window is None else max(0, len(k) - op.past.window - 1)
    return _attend(m[op.q][0, 0], k[first:], v[first:])[None, None]


def _cluster_logits(m: _Machine, op: draft_ops.ClusterLogits) -> Array:
    largest = np.argsort(m[op.clusters][0, 0])[-op.chosen :]
    tokens = op.tokens[largest].reshape(-1)
    found: Array = m[op.table][tokens] @ m[op.x][0, 0]
    out = np.full(op.out.shape, found.min() - 1)
    out[0, 0, tokens] = found
    return out


def _attend(q: Array, k: Array, v: Array) -> Array:
    """One query [H, E] over keys and values [S, K, E] -> [H, E]."""
    group = q.shape[0] // k.shape[1]
    out = np.empty_like(q)
    for head in range(q.shape[0]):
        scores = k[:, head // group] @ q[head]
        weights = np.exp(scores - scores.max())
        out[head] = weights @ v[:, head // group] / weights.sum()
    return out


def _unary(m: _Machine, op: ir.Unary) -> Array:
    x: Array = m[op.x]
    match op.name:
        case "tanh":
            return np.tanh(x)
        case "relu":
            return np.maximum(x, 0)
        case "sqrt":
            return np.sqrt(x)
        case "sigmoid":
            return 1 / (1 + np.exp(-x))
        case "cos":
            return np.cos(x)
        case "sin":
            return np.sin(x)
        case "gelu":
            cube = x * x * x  # x**3 takes thirty times as long
            inner = x.dtype.type(np.sqrt(2 / np.pi)) * (x + x.dtype.type(0.044715) * cube)
            y: Array = x.dtype.type(0.5) * x * (1 + np.tanh(inner))
            return y


def _static_range(m: _Machine, op: ir.StaticRange) -> Array:
    x: Array = m[op.x]
    scale = x.dtype.type(op.scale)
    levels = np.rint(x / scale)
    y: Array = np.clip(levels, -128, 127, out=levels) * scale
    return y


def _slice(m: _Machine, op: ir.Slice) -> Array:
    x: Array = m[op.x]
    return np.take(x, np.arange(op.start, op.start + op.out.shape[op.axis]), op.axis)


_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "maximum": np.maximum,
    "minimum": np.minimum,
}  # fmt: skip

RUN: dict[type, Callable[[_Machine, Any], Array]] = {
    ir.Linear: lambda m, op: m[op.x] @ m[op.weight].T,
    ir.Embed: _embed,
    ir.RmsNorm: _rms_norm,
    ir.RopeRotate: _rotate,
    ir.Attention: _attention,
    ir.MatMul: lambda m, op: m[op.a] @ m[op.b],
    ir.Binary: lambda m, op: _BINARY[op.name](m[op.a], m[op.b]),
    ir.Unary: _unary,
    ir.Mean: lambda m, op: np.mean(m[op.x], axis=-1, keepdims=True),
    ir.Reshape: lambda m, op: m[op.x].reshape(op.out.shape),
    ir.Slice: _slice,
    ir.Hadamard: lambda m, op: hadamard.turn(m[op.x]),
    ir.StaticRange: _static_range,
    ir.LastToken: lambda m, op: m[op.x][:, -1:],
    ir.Concat: lambda m, op: np.concatenate([m[part] for part in op.parts], op.axis),
    draft_ops.PastAttention: _past_attention,
    draft_ops.ClusterLogits: _cluster_logits,
    **reference_audio.RUN,
    **reference_conv.RUN,
    **reference_patch.RUN,
}
