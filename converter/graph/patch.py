"""Appending the ops of image patches to a graph. Axis 1 is patches: a number or ANY."""

from gemma_edge.converter.graph.ops import Graph
from gemma_edge.converter.graph.patch_ops import AxialAngles, FullAttention, Op, PoolingWeights, PositionRows
from gemma_edge.converter.graph.values import ANY, Value


def position_rows(g: Graph, positions: Value, table: str) -> Value:
    """int32 [B, N, 2] -> [B, N, D]."""
    spec = g.weight(table)
    assert spec.shape[0] % 2 == 0, (table, spec.shape)
    return _append(g, PositionRows(positions, spec, Value((*positions.shape[:2], spec.shape[1]))))


def axial_angles(g: Graph, positions: Value, theta: float, head_size: int) -> Value:
    """int32 [B, N, 2] -> [B, N, 1, E]."""
    assert head_size % 4 == 0, head_size
    return _append(g, AxialAngles(positions, theta, Value((*positions.shape[:2], 1, head_size))))


def turn(g: Graph, x: Value, cos: Value, sin: Value) -> Value:
    """[B, N, H, E], same shape. cos, sin: of `axial_angles`, [B, N, 1, E]."""
    quarter = x.shape[3] // 4
    swapped = g.concat([g.slice(x, 3, at * quarter, quarter) for at in (1, 0, 3, 2)], 3)
    return g.add(g.mul(x, cos), g.mul(swapped, sin))


def full_attention(g: Graph, q: Value, k: Value, v: Value, bias: Value) -> Value:
    """[B, N, H, E], same shape."""
    assert q.shape == k.shape == v.shape, (q.shape, k.shape, v.shape)
    assert bias.shape == q.shape[:2], (bias.shape, q.shape)
    return _append(g, FullAttention(q, k, v, bias, Value(q.shape)))


def pooling_weights(g: Graph, positions: Value, size: int) -> Value:
    """int32 [B, N, 2] -> [B, M, N]."""
    batch, patches, _ = positions.shape
    assert patches == ANY or patches % size**2 == 0, (positions.shape, size)
    pooled = ANY if patches == ANY else patches // size**2
    return _append(g, PoolingWeights(positions, size, Value((batch, pooled, patches))))


def _append(g: Graph, op: Op) -> Value:
    g.ops.append(op)
    return op.out
