"""What every executor of a text decoder offers: a `Decoder`, which is the model, and any number of `KvSlot`s over it.

A slot holds the keys and values of one token sequence: tokens in, logits out, and it can be wound back. `token_ids` is
that sequence; everything above (sessions, conversations, prefix reuse) is bookkeeping over it. Slots of one decoder
share its model and its working memory, so only one of them runs at a time, or several in one call of `decode_batch`:
neither is thread-safe.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.formats.file_range import FileRange
from gemma_edge.runtime.text.logits import Logits as Logits

WEIGHT_CACHE = "weight_cache"
"""What packed weights are called among `MappedRanges.named`."""


class ExecutorError(GemmaEdgeError, RuntimeError):
    """The executor cannot do what was asked of it. Also a RuntimeError, which is what litert_lm raises."""


class BundleMismatchError(ExecutorError):
    """The bundle's decoder or embedding sections are not what this executor runs."""


class ContextOverflowError(ExecutorError):
    """More tokens were asked for than the context holds."""

    def __init__(self, asked_tokens: int, allowed_tokens: int) -> None:
        self.asked_tokens = asked_tokens
        self.allowed_tokens = allowed_tokens
        super().__init__(
            f"context overflow: {asked_tokens} tokens asked, {allowed_tokens} allowed; "
            "shorten the input, start a new conversation or convert with a longer context"
        )


class RewindError(ExecutorError):
    """The position asked for is no longer in the KV cache."""


class ClosedError(ExecutorError):
    """The model was released."""

    def __init__(self) -> None:
        super().__init__("the executor is closed; create a new engine")


@dataclass(frozen=True)
class Snapshot:
    """What `restore` needs to return to a position that ring caches no longer hold."""

    token_ids: tuple[int, ...]
    rings: Mapping[str, NDArray[Any]]  # copies; another slot of the same decoder can restore them for the same tokens
    high_water: int  # as of `SlotState`

    @property
    def nbytes(self) -> int:
        """What the copies take."""
        return sum(ring.nbytes for ring in self.rings.values())


@dataclass(frozen=True)
class SlotState:
    """All that a slot holds: for another slot of the same decoder, or for a file.

    arrays: the written part of each cache by name, without a copy: valid until the slot runs again.
    high_water: the highest position ever written, padding included; how far rings can be wound back follows from it.
    mark: what to go back to where rings cannot be wound back so far.
    """

    token_ids: tuple[int, ...]
    high_water: int
    arrays: Mapping[str, NDArray[Any]]
    mark: Snapshot | None = None


@dataclass(frozen=True)
class MappedRanges:
    """The parts of files that a decoder has mapped.

    rows: tables that single rows are read of. weights: what is read for every token. named: all that `Engine.memory`
    tells apart, by the names it shows.
    """

    rows: tuple[FileRange, ...] = ()
    weights: tuple[FileRange, ...] = ()
    named: Mapping[str, tuple[FileRange, ...]] = field(default_factory=dict)


class KvSlot(Protocol):
    """One token sequence in one decoder. Its memory goes with the last reference, or with `close`.

    Raises:
        ContextOverflowError: `chunks`, `prefill`, `decode`, `verify` or `draft` would pass `context_tokens`; nothing
            was run.
        RewindError: `rewind` or `restore` to a position whose keys and values are gone; nothing was changed.
        ExecutorError: a token id outside the vocabulary. ClosedError: any call after `close`, or the decoder's.
    """

    @property
    def context_tokens(self) -> int:
        """Positions in the KV cache."""

    @property
    def position(self) -> int:
        """Tokens in the KV cache; the next token goes here."""

    @property
    def token_ids(self) -> Sequence[int]:
        """The tokens at positions 0 .. position-1."""

    @property
    def earliest_rewind(self) -> int:
        """The lowest position `rewind` reaches exactly; above it, every position up to `position` is allowed.

        0 when every cache covers the whole context. With ring caches it follows the highest position ever written.
        """

    @property
    def nbytes(self) -> int:
        """Memory set aside for keys and values; pages count once they are written. 0 after `close`."""

    def chunks(self, token_ids: Sequence[int]) -> Iterator[int]:
        """Append tokens without computing logits, one call into the model each time the iterator is advanced.

        Yields `position` before each call. Stopping between two is fine: what is in the cache stays valid.
        """

    def prefill(self, token_ids: Sequence[int]) -> None:
        """All `chunks` at once."""

    def decode(self, token_id: int) -> Logits:
        """Append one token and return the logits of the one after it: float32 [V], the caller's own."""

    def verify_tokens(self) -> Sequence[int]:
        """How many tokens `verify` can run at once from `position` on, rising; each size has a price of its own.

        None where the model cannot, and none near the end of the context, or where rows of several tokens do not fit.
        """

    def verify(self, token_ids: Sequence[int]) -> Logits:
        """Append several tokens and return the logits after each: float32 [n, V], the caller's own.

        They, and the keys and values, are those of as many calls of `decode`, to the bit. At least 2 tokens, and at
        most as many as the largest of `verify_tokens`; then `rewind` goes back to any position from the first of them.
        """

    def draft(self, token_id: int, n: int) -> Sequence[int]:
        """What the bundle's drafter guesses after this token, the next to be appended; nothing is appended.

        n tokens, or none: there is no drafter, or the last token here was not run by `decode` or `verify`.
        """

    def rewind(self, position: int) -> None:
        """Forget the tokens at `position` and after."""

    def reset(self) -> None:
        """Forget everything: position 0."""

    def snapshot(self) -> Snapshot:
        """Copy what a later `restore` cannot get back from the caches (the rings; nothing when there are none)."""

    def restore(self, snapshot: Snapshot) -> None:
        """Return to a snapshot. Positions below the snapshot's must not have been rewritten with other tokens."""

    def state(self) -> SlotState:
        """Everything held."""

    def set_state(self, state: SlotState) -> None:
        """Hold what another slot of the same decoder held; the next logits are equal to the bit.

        Raises ExecutorError where its arrays are not this decoder's, ContextOverflowError where it is too long;
        nothing was changed.
        """

    def cached_rows(self) -> dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Copies of what each layer's cache holds: keys and values [n, K, E] of the last n positions, by layer.

        Layers whose first rows can no longer be told from where they lie are left out.
        """

    def close(self) -> None:
        """Release the memory. Closing twice is fine."""


class SeveralModels(Protocol):
    """A decoder whose bundle holds more than one model of the same weights. Keys and values of one are not another's,
    but the memory for them can be."""

    @property
    def models(self) -> Sequence[str]:
        """Their names, the large one first; it is the one that `new_slot` makes slots of."""

    def switched(self, slot: KvSlot, model: str) -> KvSlot:
        """An empty slot of that model, over the memory of this one, which is closed."""


class Decoder(Protocol):
    """A loaded model. All that is native is released by `close`, or with the last reference to it and its slots."""

    @property
    def context_tokens(self) -> int:
        """The most positions that a slot can have."""

    @property
    def vocab_size(self) -> int:
        """Length of the logits."""

    @property
    def can_verify(self) -> bool:
        """Whether its slots have `verify`."""

    @property
    def can_draft(self) -> bool:
        """Whether its slots' `draft` says anything."""

    @property
    def batch_rows(self) -> Sequence[int]:
        """Of how many slots `decode_batch` can take a step in one call, rising; none where the model cannot."""

    def batches(self, slots: Sequence[KvSlot]) -> Sequence[Sequence[KvSlot]]:
        """Which of these slots to take a step of together, at least two each; the others' are better taken alone."""

    def decode_batch(self, slots: Sequence[KvSlot], token_ids: Sequence[int]) -> Logits:
        """Append one token to each of these slots, one of `batches`, and return the logits after each: float32 [n, V],
        the caller's own.

        They, and the keys and values, are those of `decode` of each slot, to the bit. Raises as `decode` does; nothing
        was run then.
        """

    @property
    def embedding_bytes(self) -> int:
        """What the row of one image or audio token takes."""

    @property
    def digest(self) -> str:
        """Hex SHA-256 of what keys and values depend on: the decoder and the tables of its embeddings.

        Computed when first asked for, which may take a second a gigabyte.
        """

    def new_slot(self, context_tokens: int | None = None) -> KvSlot:
        """An empty slot, by default of the longest context.

        Raises ExecutorError: not from 1 to `context_tokens`, or no memory. ClosedError.
        """

    def slot_bytes(self, context_tokens: int | None = None) -> int:
        """What a slot of this context takes when it is full."""

    def snapshot_bytes(self, context_tokens: int | None = None) -> int:
        """What one snapshot takes: the rings of such a slot."""

    def mapped_ranges(self) -> MappedRanges:
        """Where its mapped pages lie in files."""

    def close(self) -> None:
        """Release the model; its slots cannot run any more. Closing twice is fine."""
