"""What running a bundle costs beside its weights: measured constants, each with its source, and the sum of it all.

Measured with ai-edge-litert 2.3.0 and litert_lm 0.18.1 on x86-64, 2 threads, a warm XNNPACK weight cache, every page of
the KV cache written. tools/plan_vs_measured.json holds the runs, and a test compares them with what is computed here.
The constants live here and nowhere else, so that a new measurement changes one file.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gemma_edge.profiles.footprint import Footprint, Part
from gemma_edge.profiles.schema import DeviceProfile
from gemma_edge.profiles.signatures import Call

WEIGHTS_PART, EMBEDDING_PART, PLE_PART = "decoder weights", "embedding rows", "PLE rows"
"""Names of parts that others look for: what is idle while an encoder runs, and what a measurement belongs to."""

PAGE_BYTES = 4096
FLOAT_BYTES = 4

# RssAnon step by step, E2B / E4B: Python, numpy and libLiteRt imported 29 MiB; model opened 49 / 61, of which 17 / 27
# are the per-row scales of all signatures; first decode 12, logits included. 1B: 31 instead of 49. Then 15 less: what
# opening leaves in the heap is given back.
RUNTIME_ANON_BYTES = 77_000_000
RUNTIME_SOURCE = (
    "measured: interpreter and libraries 29, opening the model 31 to 61, first decode 12 MiB, 15 given back"
)

# RssFile of Python with numpy, libLiteRt.so and sentencepiece imported, before a model is opened; litert_lm 67 more.
LIBRARIES_FILE_BYTES = 21_000_000
LIBRARIES_SOURCE = "measured: Python 3.11, numpy, libLiteRt 2.3.0 and sentencepiece imported"

# 80 MiB of E2B (nine signatures), graphs, scales and norms, are read while it is opened, and given back: LiteRT has
# copied what it needs. 8 MiB are read again once it runs.
GRAPHS_FILE_BYTES = 12_000_000
GRAPHS_SOURCE = "measured: 8 MiB of the bundle that are read while it runs"

# SentencePiece with 262 k pieces: 44 MiB. The same vocabulary as tokenizer.json costs 427 MB: bundles carry this.
TOKENIZER_ANON_BYTES = 46_000_000
TOKENIZER_SOURCE = "measured: SentencePiece, 262 k pieces"

ARENA_SOURCE = "computed: each signature keeps an arena of its own"

# Rows that may wrap around are written by GATHER, whose output is not the cache in place: one ring after the other.
RING_SOURCE = "measured: each prefill signature holds a copy of the ring it is writing"

# A signature of a span once the model is opened: 7.5 MiB (1B, 2,500 ops), 13.7 (E2B, a step and a prefill 27.4).
# It runs in the workspace of the longer ones, and adds the rows it writes and, of a prefill, one layer's ring: 7.3 MiB
# for 128 tokens and 0.3 for a step (1B), 11.1 and nothing (E2B). In the file it is 1.1 MB (1B) or 3.5 (E2B).
CALL_ANON_BYTES = 8_000_000
ALTUP_CALL_ANON_BYTES = 14_500_000
CALL_FILE_BYTES = 3_500_000
SPANS_SOURCE = "measured: operators and tensors of each signature, what it writes, and one ring at a time"

# E2B at 32,768 tokens: 107 MiB more for a moment where a conversation grows past 8192, beside what stays.
SPAN_ARENA_SOURCE = "computed: what a span's runs need is released once a longer one has its own"

# A conversation goes back to where its turn began by a copy of its rings; the caches that hold all need none.
SNAPSHOT_SOURCE = "computed: a copy of the rings for each conversation whose keys and values are kept"

# A signature that verifies, the same: 7.1 MiB once the model is opened, and 3 MiB of 4 rows, 7.4 of 8 when it runs
# (Gemma 3 270M, two spans), which are its rows' logits. In place of a ring it writes nothing.
VERIFY_SOURCE = "measured: operators and tensors of each signature, and the logits of its rows"

# A signature of a batch has the attention of each of its conversations. Those of 2, 4 and 8, over the whole context and
# a span, take 92 MiB more of 1B once the model is opened, 146 of E2B: 1.8 and 2.3 for each conversation beside what any
# signature takes. Run one after the other they add 12.5 and 14 MiB, mostly logits.
BATCH_ROW_ANON_BYTES = 1_900_000
BATCH_SOURCE = "measured: operators and tensors of each signature and conversation, and their logits"

# A drafter's signature, the same; its weights are packed likewise. One of E2B's size: 3.3 MiB once it is opened, and
# 1.0 when it runs, or 15.1 where logits are put together from those of clusters, as if the vocabulary had 11 rows of
# them. It keeps float32 copies of float16 caches, as decode does.
CLUSTERED_ROWS = 11
DRAFTER_PART = "drafter"
DRAFTER_SOURCE = "measured: its weights, mapped; operators and tensors of one signature, and what its logits take"

# E2B with a float16 cache: decode takes 107 MiB more than with float32, which is the whole cache as float32 (104); each
# prefill takes 66 MiB more. Signatures of spans do the same with what they read: 668 MiB in all, 355 with float32.
CONVERTED_PREFILL_SHARE = 0.64
CONVERTED_SOURCE = "measured: decode keeps float32 copies of all layers together, each prefill of 0.64 of them"

# Two pages of values and one of scales: 11 kB (E2B) and 12 kB (E4B) were measured.
PLE_FILE_BYTES_PER_TOKEN = 3 * PAGE_BYTES
PLE_SOURCE = "computed: three pages a row; each token of the context counted once"

# A row of at most one page, anywhere in the file, touches two pages.
EMBEDDER_FILE_BYTES_PER_TOKEN = 2 * PAGE_BYTES
EMBEDDER_SOURCE = "computed: two pages a row; each token of the context counted once"


@dataclass(frozen=True)
class ActivationShape:
    """What the size of activations depends on."""

    context_tokens: int  # S, slots of a full-attention cache
    heads: int  # H
    kv_heads: int  # K
    model_width: int  # D
    ffn_width: int  # F
    altup_inputs: int  # A: 4 in Gemma 3n, 1 in Gemma 3
    ple_values: int  # L * P: values of all layers' per-layer embeddings of one token; 0 in Gemma 3
    kv_values: int  # keys and values of one token, all layers that own them
    vocab_size: int  # V

    def run_bytes(self, tokens: int, past: int | None = None) -> int:
        """Activations that live together in one run of T tokens, float32. past: as of `Call`.

        Attention scores [H, T, S+T] are there twice (before and after joining old and new, or weights and their slice),
        or gate and up of the MLP, whichever is larger. The mask [H/K * T, S+T], AltUp's state before and after a layer,
        per-layer embeddings and the rows to be written to the cache are there all the time.
        """
        slots = (self.context_tokens if past is None else past) + tokens
        values_per_token = (
            2 * max(self.heads * slots, self.ffn_width)
            + self.heads // self.kv_heads * slots
            + 2 * self.altup_inputs * self.model_width
            + self.ple_values
            + self.kv_values
        )
        return tokens * values_per_token * FLOAT_BYTES

    def span_bytes(self, call: Call, largest_ring_bytes: int) -> int:
        """What a signature of a span adds to those of the whole context. largest_ring_bytes: as of litert_footprint."""
        ring_bytes = largest_ring_bytes if call.rows > 1 else 0  # a single row cannot wrap around
        return self._opened_bytes + call.rows * self.kv_values * FLOAT_BYTES + ring_bytes

    def verify_bytes(self, call: Call) -> int:
        """What a signature that verifies adds, of a span or not."""
        return self._opened_bytes + call.rows * (self.kv_values + self.vocab_size) * FLOAT_BYTES

    def batch_bytes(self, call: Call) -> int:
        """What a signature of a batch adds; logits of one of a span lie where those of the whole context do."""
        logits = self.vocab_size if call.past is None else 0
        return self._opened_bytes + call.rows * (BATCH_ROW_ANON_BYTES + (self.kv_values + logits) * FLOAT_BYTES)

    @property
    def _opened_bytes(self) -> int:
        return ALTUP_CALL_ANON_BYTES if self.altup_inputs > 1 else CALL_ANON_BYTES


def litert_footprint(
    *,
    weights_bytes: int,
    embedder_bytes: int,
    ple_bytes: int,
    kv_bytes: int,
    ring_bytes: int,
    largest_ring_bytes: int,
    kv_is_half: bool,
    calls: Sequence[Call],
    shape: ActivationShape,
    slots: int = 1,
) -> Footprint:
    """The peak of a LiteRT run with a warm weight cache, once every signature ran and the context is full.

    `weights_bytes` is the decoder section with the head, every byte of which is read for each token; `embedder_bytes`
    and `ple_bytes` are the tables of which rows are read (0 when the bundle has none); `kv_bytes` all caches as
    allocated for one conversation, `ring_bytes` those of them that are rings, `largest_ring_bytes` keys and values of
    one layer among these, `kv_is_half` whether they hold float16; `calls` the signatures; `slots` how many
    conversations keep their keys and values at once.
    """
    context_tokens = shape.context_tokens
    verifies = [call for call in calls if call.is_verify]
    batches = [call for call in calls if call.is_batch]
    others = [call for call in calls if not call.is_verify and not call.is_batch]
    whole = [call for call in others if call.past is None]
    spans = [call for call in others if call.past is not None]

    def converted_bytes(call: Call) -> float:
        read_bytes = ring_bytes + (kv_bytes - ring_bytes) * min(1, call.reach / context_tokens)
        return (
            (call.rows if call.is_batch else 1) * 2 * read_bytes * (1 if call.has_logits else CONVERTED_PREFILL_SHARE)
        )

    wrapping = sum(call.rows > 1 for call in whole)  # a single row cannot wrap around
    return Footprint.of(
        (
            Part(WEIGHTS_PART, 0, weights_bytes, "computed: XNNPACK's weight cache holds them once, mapped"),
            Part(
                EMBEDDING_PART,
                0,
                min(embedder_bytes, context_tokens * EMBEDDER_FILE_BYTES_PER_TOKEN),
                EMBEDDER_SOURCE,
            ),
            Part(PLE_PART, 0, min(ple_bytes, context_tokens * PLE_FILE_BYTES_PER_TOKEN), PLE_SOURCE),
            Part("KV cache", slots * kv_bytes, 0, "computed: allocated whole"),
            Part("KV snapshots", slots * ring_bytes, 0, SNAPSHOT_SOURCE),
            Part(
                "KV cache as float32", round(sum(map(converted_bytes, calls))) if kv_is_half else 0, 0, CONVERTED_SOURCE
            ),
            Part("KV rings being written", largest_ring_bytes * wrapping, 0, RING_SOURCE),
            Part("activations", sum(shape.run_bytes(call.rows) for call in whole), 0, ARENA_SOURCE),
            Part(
                "signatures of spans",
                sum(shape.span_bytes(call, largest_ring_bytes) for call in spans),
                len(spans) * CALL_FILE_BYTES,
                SPANS_SOURCE,
            ),
            Part(
                "activations of spans",
                max((shape.run_bytes(call.rows, call.past) for call in spans), default=0),
                0,
                SPAN_ARENA_SOURCE,
            ),
            Part(
                "signatures that verify",
                sum(map(shape.verify_bytes, verifies)),
                len(verifies) * CALL_FILE_BYTES,
                VERIFY_SOURCE,
            ),
            Part(
                "signatures of batches",
                sum(map(shape.batch_bytes, batches)),
                len(batches) * CALL_FILE_BYTES,
                BATCH_SOURCE,
            ),
            Part("tokenizer", TOKENIZER_ANON_BYTES, 0, TOKENIZER_SOURCE),
            Part("runtime", RUNTIME_ANON_BYTES, 0, RUNTIME_SOURCE),
            Part("graphs and scales", 0, GRAPHS_FILE_BYTES, GRAPHS_SOURCE),
            Part("libraries", 0, LIBRARIES_FILE_BYTES, LIBRARIES_SOURCE),
        )
    )


def with_drafter(
    footprint: Footprint, weights_bytes: int, vocab_size: int, *, by_clusters: bool, half_bytes: int
) -> Footprint:
    """The same beside a drafter, which is kept for as long as the model.

    by_clusters: it weighs the tokens of some. half_bytes: of the float16 caches that it reads.
    """
    rows = CLUSTERED_ROWS if by_clusters else 1
    anon_bytes = CALL_ANON_BYTES + rows * vocab_size * FLOAT_BYTES + 2 * half_bytes
    return Footprint.of((*footprint.parts, Part(DRAFTER_PART, anon_bytes, weights_bytes, DRAFTER_SOURCE)))


def predicted_decode_tokens_per_s(profile: DeviceProfile, bytes_per_token: int) -> float:
    """Tokens per second when decode waits for memory, as it does with one token at a time.

    `bytes_per_token` are the weights and cache read for a token. `memory_bytes_per_s` is what decode of other language
    models has reached on the device, so no further factor applies. A CPU without a dot product (raspberry-pi-4) may be
    slower for want of arithmetic.
    """
    if bytes_per_token <= 0:
        raise ValueError(f"bytes_per_token: found {bytes_per_token}; expected a positive number of bytes")
    return profile.memory_bytes_per_s / bytes_per_token
