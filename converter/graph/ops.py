"""The computation, one Graph per signature, on a small closed set of ops that knows no file format.

Legend for shapes: B batch, T tokens, D model, H heads, K kv heads, E head size, P per-layer width, L layers.

The ops are as large as the formats allow: attention with its cache, RoPE and RMSNorm are single ops, because LiteRT
spells attention out (masks, rings, several small ops) while ONNX Runtime has one kernel for it. How a cache is laid
out, masked and written is therefore an emitter's business; a model only says which keys and values a layer sees.
Positions are implicit: a graph with RoPE or attention has one position stream, [T] consecutive integers.

The second axis of every value of a decoder is T, a number where a format wants one graph per length (LiteRT), or ANY.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from gemma_edge.converter.graph import audio_ops, conv_ops, draft_ops, patch_ops
from gemma_edge.converter.graph.rope import Rope
from gemma_edge.converter.graph.values import ANY, DType, Operand, Shape, Value, broadcast
from gemma_edge.converter.tensors import TensorSpec

__all__ = [
    "ANY", "OPS", "Attention", "Binary", "Concat", "DType", "Embed", "Graph", "Hadamard", "KVCache", "LastToken",
    "Linear", "MatMul", "Mean", "Op", "Operand", "Reshape", "RmsNorm", "Rope", "RopeRotate", "Shape", "Slice",
    "StaticRange", "Unary", "Value",
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class KVCache:
    """The keys and values one layer owns: the past, kept between runs, and this run's rows.

    k, v: [B, T, K, E], this run's rows, after norm and RoPE. window: how many positions a query sees, itself
    included; None means all of the past.
    """

    layer: int
    k: Value
    v: Value
    window: int | None


@dataclass(frozen=True, eq=False)
class Linear:
    """x [..., K] times the transpose of weight [N, K]."""

    x: Value
    weight: TensorSpec
    out: Value


@dataclass(frozen=True, eq=False)
class Hadamard:
    """x [..., K] with every 64 columns turned by the Hadamard matrix, see runtime/formats/hadamard.py."""

    x: Value
    out: Value


@dataclass(frozen=True, eq=False)
class StaticRange:
    """clip(round(x / scale), -128, 127) * scale, ties to even: x on int8 levels that do not follow from x."""

    x: Value
    scale: float
    out: Value


@dataclass(frozen=True, eq=False)
class Embed:
    """Rows of table [V, N] for ids [B, T], times the table's factor; an id outside [0, V) reads row 0, as
    Gemma3nTextModel does."""

    ids: Value
    table: TensorSpec
    out: Value


@dataclass(frozen=True, eq=False)
class RmsNorm:
    """x / sqrt(mean(x^2) + eps) [* weight] over the last axis (arXiv 1910.07467)."""

    x: Value
    weight: TensorSpec | None
    eps: float
    out: Value


@dataclass(frozen=True, eq=False)
class RopeRotate:
    """Rotate the halves of the last axis of x [B, T, H, E] by the angles of the run's positions."""

    x: Value
    rope: Rope
    out: Value


@dataclass(frozen=True, eq=False)
class Attention:
    """softmax(q k^T + causal and window mask) v; q [B, T, H, E], scale already in q, H a multiple of K."""

    q: Value
    cache: KVCache
    out: Value


@dataclass(frozen=True, eq=False)
class MatMul:
    """[..., M, N] times [..., N, O]."""

    a: Value
    b: Value
    out: Value


@dataclass(frozen=True, eq=False)
class LastToken:
    """[B, T, ...] -> [B, 1, ...]."""

    x: Value
    out: Value


BinaryName = Literal["add", "sub", "mul", "div", "maximum", "minimum"]
UnaryName = Literal["tanh", "gelu", "relu", "sqrt", "sigmoid", "cos", "sin"]  # gelu is the tanh approximation


@dataclass(frozen=True, eq=False)
class Binary:
    """Elementwise with broadcasting."""

    name: BinaryName
    a: Operand
    b: Operand
    out: Value


@dataclass(frozen=True, eq=False)
class Unary:
    """Elementwise."""

    name: UnaryName
    x: Value
    out: Value


@dataclass(frozen=True, eq=False)
class Mean:
    """Mean over the last axis, kept as size 1."""

    x: Value
    out: Value


@dataclass(frozen=True, eq=False)
class Reshape:
    """Same values, another shape."""

    x: Value | TensorSpec
    out: Value


@dataclass(frozen=True, eq=False)
class Slice:
    """`out.shape[axis]` entries of one axis, from `start`."""

    x: Value
    axis: int
    start: int
    out: Value


@dataclass(frozen=True, eq=False)
class Concat:
    """Join along one axis."""

    parts: tuple[Value, ...]
    axis: int
    out: Value


Op = (
    Linear | Embed | RmsNorm | RopeRotate | Attention | MatMul | Binary | Unary | Mean | Reshape | Slice | Concat
    | LastToken | Hadamard | StaticRange | audio_ops.Op | conv_ops.Op | draft_ops.Op | patch_ops.Op
)  # fmt: skip
OPS: tuple[type, ...] = get_args(Op)


class Graph:
    """A tape: each method appends one op and returns its output. Mistaken shapes are a model file's: assertions.

    `tensors` are the model's facts by name; `used` those that this graph touches, which a section of a file must hold.
    """

    def __init__(self, name: str, tokens: int, tensors: Mapping[str, TensorSpec]) -> None:
        self.name = name
        self.tokens = tokens  # T, or ANY
        self.past: int | None = None  # the most tokens that stand before a run; None: whatever a cache can hold
        self.is_steps = False  # whether its rows have to come out as they would from runs of one row each, to the bit
        self.is_batch = False  # whether each row is one run of one row, over a sequence of its own, to the bit
        self.wraps = True  # whether whoever runs it lets its rows pass the end of a ring, or of the context
        self.tensors = tensors
        self.ops: list[Op] = []
        self.inputs: dict[str, Value] = {}
        self.outputs: dict[str, Value] = {}
        self.caches: dict[int, KVCache] = {}  # by owning layer
        self.layers: dict[int, Value] = {}  # what each layer hands on, for those who look inside
        self.used: dict[str, TensorSpec] = {}
        self._turned: dict[Value, Value] = {}
        self._on_levels: dict[tuple[Value, float], Value] = {}

    def input(self, name: str, shape: Shape, dtype: DType = "float32") -> Value:
        """Declare something the caller provides at each run."""
        self.inputs[name] = Value(shape, dtype)
        return self.inputs[name]

    def output(self, name: str, value: Value) -> None:
        """Declare a result."""
        self.outputs[name] = value

    def weight(self, name: str) -> TensorSpec:
        """The model tensor `name`, noted as used by this graph."""
        return self.used.setdefault(name, self.tensors[name])

    def kv_cache(self, layer: int, k: Value, v: Value, window: int | None) -> KVCache:
        """Append this run's keys and values [B, T, K, E] to the past of `layer`."""
        assert k.shape == v.shape, (k.shape, v.shape)
        assert len(k.shape) == 4, k.shape
        self.caches[layer] = KVCache(layer, k, v, window)
        return self.caches[layer]

    def linear(self, x: Value, weight: str) -> Value:
        """[..., K] -> [..., N]. Inputs of a weight whose columns are turned are turned first, once for all weights;
        where it has static scales, inputs and outputs are put on their levels."""
        spec = self.weight(weight)
        assert x.shape[-1] == spec.shape[1], (weight, x.shape, spec.shape)
        if spec.fold.hadamard:
            x = self.hadamard(x)
        if spec.static is not None:
            x = self.static_range(x, spec.static.inputs)
        self.ops.append(Linear(x, spec, out := Value((*x.shape[:-1], spec.shape[0]))))
        return out if spec.static is None else self.static_range(out, spec.static.outputs)

    def static_range(self, x: Value, scale: float) -> Value:
        """Same shape; x itself where the scale is 0, the same value where x was put on these levels before."""
        if scale and (x, scale) not in self._on_levels:
            self._on_levels[x, scale] = Value(x.shape)
            self.ops.append(StaticRange(x, scale, self._on_levels[x, scale]))
        return self._on_levels[x, scale] if scale else x

    def embed(self, ids: Value, table: str) -> Value:
        """[B, T] int32 -> [B, T, N]."""
        spec = self.weight(table)
        out = Value((*ids.shape, spec.shape[1]))
        self.ops.append(Embed(ids, spec, out))
        return self.hadamard(out) if spec.fold.hadamard else out

    def hadamard(self, x: Value) -> Value:
        """Same shape; the same value where x was turned before."""
        if x not in self._turned:
            self._turned[x] = Value(x.shape)
            self.ops.append(Hadamard(x, self._turned[x]))
        return self._turned[x]

    def rms_norm(self, x: Value, weight: str | None, eps: float) -> Value:
        """Same shape."""
        spec = None if weight is None else self.weight(weight)
        assert spec is None or spec.shape == x.shape[-1:], (weight, x.shape)
        out = Value(x.shape)
        self.ops.append(RmsNorm(x, spec, eps, out))
        return out

    def rotate(self, x: Value, rope: Rope) -> Value:
        """[B, T, H, E], same shape."""
        assert len(x.shape) == 4, x.shape
        assert x.shape[1] == self.tokens, x.shape
        self.ops.append(RopeRotate(x, rope, out := Value(x.shape)))
        return out

    def attention(self, q: Value, cache: KVCache) -> Value:
        """[B, T, H, E], same shape."""
        assert q.shape[2] % cache.k.shape[2] == 0, (q.shape, cache.k.shape)
        assert q.shape[3] == cache.k.shape[3], (q.shape, cache.k.shape)
        out = Value(q.shape)
        self.ops.append(Attention(q, cache, out))
        return out

    def matmul(self, a: Value, b: Value) -> Value:
        """[..., M, N] x [..., N, O] -> [..., M, O]."""
        assert a.shape[:-2] == b.shape[:-2], (a.shape, b.shape)
        assert a.shape[-1] == b.shape[-2], (a.shape, b.shape)
        out = Value((*a.shape[:-1], b.shape[-1]))
        self.ops.append(MatMul(a, b, out))
        return out

    def add(self, a: Operand, b: Operand) -> Value:
        """a + b, broadcast."""
        return self._binary("add", a, b)

    def sub(self, a: Operand, b: Operand) -> Value:
        """a - b, broadcast."""
        return self._binary("sub", a, b)

    def mul(self, a: Operand, b: Operand) -> Value:
        """a * b, broadcast."""
        return self._binary("mul", a, b)

    def div(self, a: Operand, b: Operand) -> Value:
        """a / b, broadcast."""
        return self._binary("div", a, b)

    def maximum(self, a: Operand, b: Operand) -> Value:
        """Larger of the two, broadcast."""
        return self._binary("maximum", a, b)

    def minimum(self, a: Operand, b: Operand) -> Value:
        """Smaller of the two, broadcast."""
        return self._binary("minimum", a, b)

    def tanh(self, x: Value) -> Value:
        """Same shape."""
        return self.unary("tanh", x)

    def gelu(self, x: Value) -> Value:
        """Tanh approximation (gelu_pytorch_tanh), same shape."""
        return self.unary("gelu", x)

    def relu(self, x: Value) -> Value:
        """Same shape."""
        return self.unary("relu", x)

    def sqrt(self, x: Value) -> Value:
        """Same shape."""
        return self.unary("sqrt", x)

    def sigmoid(self, x: Value) -> Value:
        """Same shape."""
        return self.unary("sigmoid", x)

    def mean(self, x: Value) -> Value:
        """[..., N] -> [..., 1]."""
        out = Value((*x.shape[:-1], 1))
        self.ops.append(Mean(x, out))
        return out

    def reshape(self, x: Value | TensorSpec, shape: Shape) -> Value:
        """Same number of values. A weight becomes a value."""
        assert math.prod(x.shape) == math.prod(shape), (x.shape, shape)
        if isinstance(x, Value) and x.shape == shape:
            return x
        out = Value(shape, x.dtype if isinstance(x, Value) else "float32")
        self.ops.append(Reshape(x, out))
        return out

    def slice(self, x: Value, axis: int, start: int, size: int) -> Value:
        """[..., N, ...] -> [..., size, ...] along `axis`."""
        assert 0 <= start <= x.shape[axis] - size, (x.shape, axis, start, size)
        shape = list(x.shape)
        shape[axis] = size
        out = Value(tuple(shape))
        self.ops.append(Slice(x, axis % len(shape), start, out))
        return out

    def last_token(self, x: Value) -> Value:
        """[B, T, ...] -> [B, 1, ...]; nothing where T is 1."""
        if x.shape[1] == 1:
            return x
        out = Value((x.shape[0], 1, *x.shape[2:]))
        self.ops.append(LastToken(x, out))
        return out

    def concat(self, parts: Sequence[Value], axis: int) -> Value:
        """Join along `axis`; every other axis equal."""
        if len(parts) == 1:
            return parts[0]
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        others = [[n for i, n in enumerate(part.shape) if i != axis % len(shape)] for part in parts]
        assert all(other == others[0] for other in others), [part.shape for part in parts]
        out = Value(tuple(shape))
        self.ops.append(Concat(tuple(parts), axis % len(shape), out))
        return out

    def _binary(self, name: BinaryName, a: Operand, b: Operand) -> Value:
        out = Value(broadcast(a, b))
        self.ops.append(Binary(name, a, b, out))
        return out

    def unary(self, name: UnaryName, x: Value) -> Value:
        """Same shape."""
        out = Value(x.shape)
        self.ops.append(Unary(name, x, out))
        return out
