"""The ops of a drafter in TFLite's terms: it reads the decoder's caches, and need not weigh the whole vocabulary."""

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from gemma_edge.converter.graph.draft_ops import Past
from gemma_edge.converter.litert.attention import HIDDEN, Positions, scores_of, weighted_sum
from gemma_edge.converter.litert.file import Opcode, Phase, Tensor
from gemma_edge.converter.litert.ops import F16, F32, I32, Options, Subgraph
from gemma_edge.converter.plan.cache_layout import CacheLayout
from gemma_edge.converter.quantize.stored import StoredWeight


class PastTensors:
    """One layer's cache in a signature that only reads it, as float32."""

    def __init__(self, sub: Subgraph, past: Past, layout: CacheLayout) -> None:
        slots, kind = layout.slots(past.window), F16 if layout.half else F32
        k = sub.input(f"kv_cache_k_{past.layer}", (1, past.kv_heads, slots, past.size), kind)
        v = sub.input(f"kv_cache_v_{past.layer}", (1, past.kv_heads, past.size, slots), kind)
        self.k, self.v = (sub.dequantize(k), sub.dequantize(v)) if layout.half else (k, v)


def past_attention(sub: Subgraph, q: Tensor, past: PastTensors, window: int | None, positions: Positions) -> Tensor:
    """q [1, 1, H, E] -> [1, 1, H, E], of a query without a key of its own."""
    _, _, heads, size = q.shape
    kv_heads = past.k.shape[1]
    q = sub.reshape(q, (1, kv_heads, heads // kv_heads, size))
    weights = sub.softmax(sub.add(scores_of(sub, q, past.k), positions.past_mask(window)))  # [1, K, H/K, S]
    return sub.reshape(weighted_sum(sub, weights, past.v), (1, 1, heads, size))


def cluster_logits(
    sub: Subgraph, x: Tensor, clusters: Tensor, table: StoredWeight, tokens: Tensor, chosen: int
) -> Tensor:
    """x [1, 1, N], clusters [1, 1, C], table [V, N], tokens int32 [C, V / C] -> [1, 1, V]."""
    vocab_size, width = table.shape
    options = schema.TopKV2OptionsT()
    largest = sub.op(
        Opcode.TOPK_V2, [sub.reshape(clusters, clusters.shape[-1:]), sub.constant(chosen, I32)], (chosen,), I32,
        Options.TopKV2Options, options, unread=((chosen,), F32),
    )  # fmt: skip
    count = chosen * tokens.shape[1]
    ids = sub.reshape(sub.gather(tokens, largest, 0, Phase.BODY), (count,))
    rows = sub.reshape(sub.embedding_lookup(ids, table), (1, count, width))
    found = sub.reshape(sub.batch_matmul(x, rows, True), (count,))

    def scattered(values: Tensor) -> Tensor:
        operands = [sub.reshape(ids, (count, 1)), values, sub.constant([vocab_size], I32)]
        return sub.op(
            Opcode.SCATTER_ND, operands, (vocab_size,), F32, Options.ScatterNdOptions, schema.ScatterNdOptionsT()
        )

    is_chosen = scattered(sub.constant(np.ones(count)))
    others = sub.mul(sub.sub(sub.constant(1.0), is_chosen), sub.constant(HIDDEN))  # 0 where chosen
    return sub.reshape(sub.add(scattered(found), others), (1, 1, vocab_size))
