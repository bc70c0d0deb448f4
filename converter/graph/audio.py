"""The ops that only an audio encoder needs, and the functions that append them to a graph.

Axis 1 is time: frames, a number or ANY. As in ops.py, an op says what is computed, and how time is cut into blocks,
padded or masked is an emitter's business.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gemma_edge.converter.graph.values import ANY, Shape, Value
from gemma_edge.converter.tensors import TensorSpec

if TYPE_CHECKING:
    from gemma_edge.converter.graph.ops import Graph


@dataclass(frozen=True, eq=False)
class Cast:
    """bool -> float32, as 0.0 and 1.0; float32 -> bool, whether it is not 0."""

    x: Value
    out: Value


@dataclass(frozen=True, eq=False)
class EveryNth:
    """Entries 0, step, 2 * step, ... of axis 1."""

    x: Value
    step: int
    out: Value


@dataclass(frozen=True, eq=False)
class PadRows:
    """Zeros behind the entries of axis 1, up to `out.shape[1]` of them."""

    x: Value
    out: Value


@dataclass(frozen=True, eq=False)
class CumulativeNorm:
    """Normalise x [B, T, F, C] by mean and variance over F, C and all of time so far, then multiply by weight [C].

    The variance at t is the mean over s <= t of (x_s - mean_s)^2: each step's difference is to its own mean so far.
    """

    x: Value
    weight: TensorSpec
    eps: float
    out: Value


@dataclass(frozen=True, eq=False)
class SlidingAttention:
    """Attention of each step to itself and the P before it, with relative positions (arXiv 1901.02860).

    q, k, v: [B, T, H, E], the scale already in q. relative: [1, H, E, P + 1], what column f says of the step P - f
    back. valid: [B, T], 1.0 for the steps that may be seen; a step that sees none gives anything that is finite.
    A score s is cap * tanh(s / cap) of q k + q relative.
    """

    q: Value
    k: Value
    v: Value
    relative: TensorSpec
    valid: Value
    cap: float
    out: Value

    @property
    def past(self) -> int:
        """P, how many steps before its own a query sees."""
        return self.relative.shape[3] - 1


Op = Cast | EveryNth | PadRows | CumulativeNorm | SlidingAttention


def as_float(g: "Graph", x: Value) -> Value:
    """bool -> float32, same shape."""
    assert x.dtype == "bool", x
    return _append(g, Cast(x, Value(x.shape)))


def as_bool(g: "Graph", x: Value) -> Value:
    """float32 -> bool, same shape."""
    return _append(g, Cast(x, Value(x.shape, "bool")))


def every_nth(g: "Graph", x: Value, step: int) -> Value:
    """[B, T, ...] -> [B, ceil(T / step), ...]."""
    return x if step == 1 else _append(g, EveryNth(x, step, Value(_with_rows(x.shape, shortened(x.shape[1], step)))))


def pad_rows(g: "Graph", x: Value, rows: int) -> Value:
    """[B, T, ...] -> [B, rows, ...]; T at most `rows`."""
    return x if x.shape[1] == rows else _append(g, PadRows(x, Value(_with_rows(x.shape, rows))))


def cumulative_norm(g: "Graph", x: Value, weight: str, eps: float) -> Value:
    """[B, T, F, C], same shape."""
    spec = g.weight(weight)
    assert spec.shape == x.shape[3:], (weight, x.shape)
    return _append(g, CumulativeNorm(x, spec, eps, Value(x.shape)))


def sliding_attention(g: "Graph", q: Value, k: Value, v: Value, relative: str, valid: Value, cap: float) -> Value:
    """[B, T, H, E], same shape."""
    spec = g.weight(relative)
    assert q.shape == k.shape == v.shape, (q.shape, k.shape, v.shape)
    assert spec.shape[:3] == (1, *q.shape[2:]), (relative, spec.shape, q.shape)
    assert valid.shape == q.shape[:2], (valid.shape, q.shape)
    return _append(g, SlidingAttention(q, k, v, spec, valid, cap, Value(q.shape)))


def shortened(frames: int, step: int) -> int:
    """How many of `frames` steps are left when every `step`-th is taken from the first on."""
    return ANY if frames == ANY else -(-frames // step)


def _with_rows(shape: Shape, rows: int) -> Shape:
    return (shape[0], rows, *shape[2:])


def _append(g: "Graph", op: Op) -> Value:
    g.ops.append(op)
    return op.out
