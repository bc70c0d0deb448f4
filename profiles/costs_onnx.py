"""What running an ONNX directory in our executor costs; costs.py is the same for LiteRT.

Measured with onnxruntime 1.31.1 on x86-64, packed weights from the cache, every page of the KV cache written; the
constants with Gemma 3n E2B and (mapped weights) E4B in int4 at 4096 tokens. tools/plan_vs_measured.json holds runs of
other sizes, precisions and contexts, and a test compares them with what is computed here.
"""

from gemma_edge.profiles.costs import (
    EMBEDDER_FILE_BYTES_PER_TOKEN,
    EMBEDDER_SOURCE,
    EMBEDDING_PART,
    FLOAT_BYTES,
    PLE_FILE_BYTES_PER_TOKEN,
    PLE_PART,
    PLE_SOURCE,
    SNAPSHOT_SOURCE,
    TOKENIZER_ANON_BYTES,
    TOKENIZER_SOURCE,
    WEIGHTS_PART,
    ActivationShape,
)
from gemma_edge.profiles.footprint import Footprint, Part

PREFILL_TOKENS = 128
"""Rows of one call at most (runtime/executors/onnx/graph.py; a test holds the two together)."""

# MatMulNBits reads what was packed: values, scales, and a sum beside each scale. Where memory just holds what is used,
# 1546 MiB for 1466 MiB of E2B's weights in blocks of 256, 2588 MiB for E4B's 2471; in blocks of 32, 1.28 times as much.
PACKED_FACTOR = 1.01
PACKED_BYTES_PER_SCALE = 9
PACKED_SOURCE = "measured: packed weights and the rest, 1.01 times the values and 9 bytes for each scale"

# RssAnon: onnxruntime, onnx_ir and numpy imported 67 MiB, directory opened 9, session 17, first decode 4.
RUNTIME_ANON_BYTES = 102_000_000
RUNTIME_SOURCE = "measured: interpreter and libraries 67, opening the model 26, first decode 4 MiB"

LIBRARIES_FILE_BYTES = 34_000_000
LIBRARIES_SOURCE = "measured: Python 3.11, numpy, onnxruntime 1.31.1 imported"

# The first prefill of 128 rows takes 47 MiB. GroupQueryAttention keeps no scores, so the context does not matter.
ARENA_FACTOR = 2.35
ARENA_SOURCE = "computed for 128 rows, times 2.35 (47 MiB measured for E2B)"


def onnx_footprint(
    *,
    values_bytes: int,
    scales: int,
    embedder_bytes: int,
    ple_bytes: int,
    kv_bytes: int,
    ring_bytes: int,
    shape: ActivationShape,
    slots: int = 1,
) -> Footprint:
    """The peak of a run with packed weights from the cache.

    values_bytes: the decoder's weights without their scales, of which there are `scales`, one for each block of columns
    as the graph has them; ring_bytes: of the caches of sliding layers. The others are `litert_footprint`'s.
    """
    packed_bytes = round(PACKED_FACTOR * values_bytes) + PACKED_BYTES_PER_SCALE * scales
    context_tokens = shape.context_tokens
    values_per_row = 2 * shape.ffn_width + 2 * shape.altup_inputs * shape.model_width + shape.ple_values
    arena_bytes = round(ARENA_FACTOR * PREFILL_TOKENS * values_per_row * FLOAT_BYTES)
    embedding_bytes = min(embedder_bytes, context_tokens * EMBEDDER_FILE_BYTES_PER_TOKEN)
    return Footprint.of(
        (
            Part(WEIGHTS_PART, 0, packed_bytes, PACKED_SOURCE),
            Part(EMBEDDING_PART, 0, embedding_bytes, EMBEDDER_SOURCE),
            Part(PLE_PART, 0, min(ple_bytes, context_tokens * PLE_FILE_BYTES_PER_TOKEN), PLE_SOURCE),
            Part("KV cache", slots * kv_bytes, 0, "computed: rings, but for the cache that other layers share"),
            Part("KV snapshots", slots * ring_bytes, 0, SNAPSHOT_SOURCE),
            Part("activations", arena_bytes, 0, ARENA_SOURCE),
            Part("tokenizer", TOKENIZER_ANON_BYTES, 0, TOKENIZER_SOURCE),
            Part("runtime", RUNTIME_ANON_BYTES, 0, RUNTIME_SOURCE),
            Part("libraries", 0, LIBRARIES_FILE_BYTES, LIBRARIES_SOURCE),
        )
    )
