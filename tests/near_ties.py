"""Greedy texts of two engines, compared up to the first near tie.

Where the best two tokens are closer than two engines' rounding, either is right, and behind it the texts may differ in
everything. That is for whole texts; logits are compared where there are any.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from gemma_edge.runtime.engine import Engine

NEAR_TIE = {"fp32": 2e-4, "int8": 0.16, "int4": 0.16}
"""Twice what a logit of the trained fixtures changes when a token runs alone and not in a chunk: 1e-5 in float32 (times
10, for engines of two versions), 0.08 where XNNPACK rounds activations to int8, on AVX-512. Logits span about 20."""


def check_same_greedy_text(
    engine: Engine, prompt: Sequence[int], reply: Sequence[int], theirs: str, ours: str, near_tie: float
) -> None:
    """That another engine's greedy text is ours, or differs from the first near tie on.

    reply: the tokens of `ours`, chosen by `engine` after `prompt`, a stop token with them. near_tie: one of NEAR_TIE.
    """
    if theirs == ours:
        return
    sequence = engine.new_sequence()
    sequence.append(prompt)
    logits = []
    for token in reply:
        logits.append(np.array(sequence.logits()))
        sequence.append([token])
    settled = settled_tokens(logits, reply, near_tie)
    assert settled < len(reply), f"no near tie, and yet {theirs!r} is not {ours!r}"
    begins = engine.detokenize(list(reply[:settled])).rstrip("\ufffd")  # a character's bytes may be several tokens
    assert theirs.startswith(begins), f"{theirs!r} differs from {ours!r} before the near tie behind {begins!r}"


def settled_tokens(logits: Iterable[NDArray[np.float32]], reply: Sequence[int], near_tie: float) -> int:
    """How many tokens of a reply come before the first that has a rival, by the logits it was chosen from."""
    for index, (row, token) in enumerate(zip(logits, reply, strict=True)):
        rivals = np.delete(row, token)
        if row[token] - rivals.max() < near_tie:
            return index
    return len(reply)
