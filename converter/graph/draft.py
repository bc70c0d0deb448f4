"""Appending the ops of a drafter to a graph."""

from gemma_edge.converter.graph.draft_ops import Past, PastAttention
from gemma_edge.converter.graph.ops import Graph
from gemma_edge.converter.graph.values import Value


def past_attention(g: Graph, q: Value, past: Past) -> Value:
    """[B, 1, H, E], same shape."""
    assert q.shape[1] == 1, q.shape
    assert q.shape[2] % past.kv_heads == 0, (q.shape, past)
    assert q.shape[3] == past.size, (q.shape, past)
    out = Value(q.shape)
    g.ops.append(PastAttention(q, past, out))
    return out
