"""The ops that only a drafter needs: it reads what another model has cached, and keeps nothing; draft.py appends them.

Only LiteRT has a drafter beside a model, so no other emitter spells them.
"""

from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.graph.values import Value
from gemma_edge.converter.tensors import TensorSpec


@dataclass(frozen=True)
class Past:
    """The keys and values that a layer of another graph owns.

    layer: its number there. kv_heads, size: K and E. window: as of its KVCache.
    """

    layer: int
    kv_heads: int
    size: int
    window: int | None


@dataclass(frozen=True, eq=False)
class PastAttention:
    """softmax(q k^T + window mask) v over what stands before; q [B, 1, H, E], scale already in q, H a multiple of K.

    The query has no key of its own. Of a window W it sees the W + 1 positions before its own, where a causal layer sees
    W - 1: in transformers its place is that of the last key, and the distance W still counts
    (modeling_gemma4_assistant.py, create_attention_masks; masking_utils.py, sliding_window_bidirectional_overlay).
    """

    q: Value
    past: Past
    out: Value


@dataclass(frozen=True, eq=False)
class ClusterLogits:
    """x [B, 1, N] times the transpose of table [V, N], of some tokens only, [B, 1, V]: the others' are below these.

    clusters: [B, 1, C]; the tokens of the `chosen` largest of them count. tokens: int32 [C, V / C], those of each.
    Source: transformers models/gemma4_assistant, Gemma4AssistantMaskedEmbedder.
    """

    x: Value
    clusters: Value
    table: TensorSpec
    tokens: NDArray[np.int32]
    chosen: int
    out: Value


Op = PastAttention | ClusterLogits
OPS: tuple[type, ...] = get_args(Op)
