"""How many tokens signatures run at once, and how far back they look, where nobody asks for anything else."""

DEFAULT_PREFILL_TOKENS = (16, 128)
"""A large chunk for speed (longer ones cost activation memory: 70 MB at 128) and a small one so that a turn can end
close to the end of the context, where a padded large chunk would not fit."""

SHORTEST_SPAN_TOKENS, SPAN_STEP = 1024, 8
"""Attention reads as much of the context as its signature was made for. With some for 1024 tokens, 8192 and so on, a
conversation pays for at most eight times what it has written; each costs the memory that profiles/costs.py says."""

DRAFTER_TOKENS = 4
"""One that is known, and a drafter's guesses: vLLM takes 2 of E2B's and 4 of E4B's (vllm-project/vllm#41745)."""

MOST_BATCH_ROWS = 8
"""Conversations that take a step together: the attention of each is spelled out, so a signature grows with them."""


def usual_prefill(context_tokens: int | None) -> tuple[int, ...]:
    """DEFAULT_PREFILL_TOKENS without what is longer than the context; one chunk where all are."""
    if context_tokens is None:
        return DEFAULT_PREFILL_TOKENS
    return tuple(n for n in DEFAULT_PREFILL_TOKENS if n <= context_tokens) or DEFAULT_PREFILL_TOKENS[:1]


def usual_spans(context_tokens: int) -> tuple[int, ...]:
    """How many tokens of a context attention gets signatures of its own for, beside one for all of them."""
    spans = []
    span = SHORTEST_SPAN_TOKENS
    while span < context_tokens:
        spans.append(span)
        span *= SPAN_STEP
    return tuple(spans)
