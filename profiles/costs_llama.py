"""What running a GGUF in llama.cpp costs; costs.py is the same for LiteRT.

Of llama.cpp as llama-cpp-python 0.3.36 brings it, on x86-64, with the file mapped.
"""

from gemma_edge.profiles.costs import (
    EMBEDDER_FILE_BYTES_PER_TOKEN,
    FLOAT_BYTES,
    PLE_PART,
    WEIGHTS_PART,
    ActivationShape,
)
from gemma_edge.profiles.footprint import Footprint, Part

BATCH_TOKENS = 512
"""What is computed at a time at most: n_ubatch."""

WEIGHTS_SOURCE = "computed: mapped, and read for every token"
REPACKED_SOURCE = "computed: Q4_0 is copied in the order that the kernels for CPUs read"
TABLE_SOURCE = "computed: rows of the tokens so far, a page each"

VOCABULARY_ANON_BYTES_PER_TOKEN = 500
VOCABULARY_SOURCE = "estimated: texts, scores and maps of the vocabulary, 500 bytes a token"

RUNTIME_ANON_BYTES = 40_000_000
RUNTIME_SOURCE = "estimated: process, scheduler and threads"


def llama_footprint(
    *,
    weights_bytes: int,
    repacked_bytes: int,
    table_bytes: int,
    kv_bytes: int,
    vocab_size: int,
    shape: ActivationShape,
) -> Footprint:
    """weights_bytes: that are multiplied; repacked_bytes: of these in Q4_0. table_bytes: that are read by row alone."""
    per_token = vocab_size + 4 * shape.ffn_width + 2 * shape.altup_inputs * shape.model_width + shape.ple_values
    return Footprint.of(
        (
            Part(WEIGHTS_PART, 0, weights_bytes - repacked_bytes, WEIGHTS_SOURCE),
            Part("weights, repacked", repacked_bytes, 0, REPACKED_SOURCE),
            Part(PLE_PART, 0, min(table_bytes, shape.context_tokens * EMBEDDER_FILE_BYTES_PER_TOKEN), TABLE_SOURCE),
            Part("KV cache", kv_bytes, 0, "computed: windows of sliding layers, all tokens of the others"),
            Part("activations", BATCH_TOKENS * per_token * FLOAT_BYTES, 0, "computed for 512 tokens at a time"),
            Part("tokenizer", vocab_size * VOCABULARY_ANON_BYTES_PER_TOKEN, 0, VOCABULARY_SOURCE),
            Part("runtime", RUNTIME_ANON_BYTES, 0, RUNTIME_SOURCE),
        )
    )
