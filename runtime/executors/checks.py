"""What every kind of slot refuses, in the same words."""

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from gemma_edge.runtime.executors.base import (
    ContextOverflowError,
    ExecutorError,
    KvSlot,
    RewindError,
    SlotState,
    Snapshot,
)
from gemma_edge.runtime.media.soft_tokens import is_in_vocabulary


def check_tokens(token_ids: Sequence[int], position: int, context_tokens: int, vocabulary: int, whose: str) -> None:
    """Raises ContextOverflowError or ExecutorError where these cannot be appended at `position`."""
    asked = position + len(token_ids)
    if asked > context_tokens:
        raise ContextOverflowError(asked, context_tokens)
    wrong = next((token for token in token_ids if not is_in_vocabulary(token, vocabulary)), None)
    if wrong is not None:
        raise ExecutorError(
            f"token id {wrong} is outside the vocabulary of {vocabulary}; tokenize with {whose} tokenizer"
        )


def check_rewind(position: int, slot: KvSlot) -> None:
    """Raises RewindError where the slot cannot go back there."""
    if not slot.earliest_rewind <= position <= slot.position:
        raise RewindError(
            f"cannot rewind to position {position}; {slot.earliest_rewind} to {slot.position} are in the cache; "
            "restore a snapshot or reset and prefill again"
        )


def check_restore(snapshot: Snapshot, held: Sequence[int]) -> None:
    """Raises RewindError where `held`, the tokens whose rows are still there, are not the snapshot's."""
    position = len(snapshot.token_ids)
    if tuple(held[:position]) != snapshot.token_ids:
        raise RewindError(
            f"cannot restore the snapshot at position {position}: tokens before it were replaced since; "
            "reset and prefill again"
        )


def check_state(state: SlotState, parts: Mapping[str, NDArray[Any]], context_tokens: int) -> None:
    """Raises where a slot, whose caches up to the state's position are `parts`, cannot hold it."""
    if len(state.token_ids) > context_tokens:
        raise ContextOverflowError(len(state.token_ids), context_tokens)
    found = {name: (array.dtype, array.shape) for name, array in state.arrays.items()}
    expected = {name: (part.dtype, part.shape) for name, part in parts.items()}
    if found != expected:
        raise ExecutorError(
            f"the keys and values have other shapes than this decoder's ({len(found)} arrays, expected "
            f"{len(expected)}); they are another model's, run the prompt again"
        )
