"""Appending the ops of a drafter to a graph."""

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.graph.draft_ops import ClusterLogits, Past, PastAttention
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


def cluster_logits(g: Graph, x: Value, clusters: Value, table: str, tokens: NDArray[np.int32], chosen: int) -> Value:
    """[B, 1, N], [B, 1, C] -> [B, 1, V]."""
    spec = g.weight(table)
    assert tokens.shape == (clusters.shape[-1], spec.shape[0] // clusters.shape[-1]), (tokens.shape, clusters.shape)
    assert x.shape[-1] == spec.shape[1], (x.shape, spec.shape)
    out = Value((*x.shape[:-1], spec.shape[0]))
    g.ops.append(ClusterLogits(x, clusters, spec, tokens, chosen, out))
    return out
