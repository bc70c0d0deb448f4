"""Appending the ops of audio to a graph. Axis 1 is time: frames, a number or ANY."""

from gemma_edge.converter.graph.audio_ops import Cast, CumulativeNorm, EveryNth, Op, PadRows, SlidingAttention
from gemma_edge.converter.graph.ops import Graph
from gemma_edge.converter.graph.values import ANY, Shape, Value


def as_float(g: Graph, x: Value) -> Value:
    """bool or int32 -> float32, same shape."""
    assert x.dtype in ("bool", "int32"), x
    return _append(g, Cast(x, Value(x.shape)))


def as_bool(g: Graph, x: Value) -> Value:
    """float32 -> bool, same shape."""
    return _append(g, Cast(x, Value(x.shape, "bool")))


def every_nth(g: Graph, x: Value, step: int) -> Value:
    """[B, T, ...] -> [B, ceil(T / step), ...]."""
    return x if step == 1 else _append(g, EveryNth(x, step, Value(_with_rows(x.shape, shortened(x.shape[1], step)))))


def pad_rows(g: Graph, x: Value, rows: int) -> Value:
    """[B, T, ...] -> [B, rows, ...]; T at most `rows`."""
    return x if x.shape[1] == rows else _append(g, PadRows(x, Value(_with_rows(x.shape, rows))))


def cumulative_norm(g: Graph, x: Value, weight: str, eps: float) -> Value:
    """[B, T, F, C], same shape."""
    spec = g.weight(weight)
    assert spec.shape == x.shape[3:], (weight, x.shape)
    return _append(g, CumulativeNorm(x, spec, eps, Value(x.shape)))


def sliding_attention(g: Graph, q: Value, k: Value, v: Value, relative: str, valid: Value, cap: float) -> Value:
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


def _append(g: Graph, op: Op) -> Value:
    g.ops.append(op)
    return op.out
