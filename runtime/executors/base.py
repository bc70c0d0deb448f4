"""What every executor of a text decoder offers: tokens in, logits out, and a KV cache that can be wound back.

An executor holds the KV cache of one token sequence. `token_ids` is that sequence; everything above (sessions,
conversations, prefix reuse) is bookkeeping over it. Executors are not thread-safe: the engine serialises calls.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.text.logits import Logits as Logits


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


@dataclass(frozen=True)
class Snapshot:
    """What `restore` needs to return to a position that ring caches no longer hold."""

    token_ids: tuple[int, ...]
    state: Any  # the executor's own copy; no other executor can restore it
    nbytes: int


class Executor(Protocol):
    """Runs one decoder over one token sequence.

    Raises:
        ContextOverflowError: `prefill` or `decode` would pass `context_tokens`; nothing was run.
        RewindError: `rewind` or `restore` to a position whose keys and values are gone; nothing was changed.
        ExecutorError: a token id outside the vocabulary, or any call after `close`.
    """

    @property
    def context_tokens(self) -> int:
        """Positions in the KV cache."""

    @property
    def vocab_size(self) -> int:
        """Length of the logits."""

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

    def prefill(self, token_ids: Sequence[int], before_chunk: Callable[[int], None] | None = None) -> None:
        """Append tokens without computing logits.

        `before_chunk(position)` is called before each call into the model and may raise to stop: what is already
        in the cache stays valid and `position` says how far it got.
        """

    def decode(self, token_id: int) -> Logits:
        """Append one token and return the logits of the one after it: float32 [V], the caller's own."""

    def rewind(self, position: int) -> None:
        """Forget the tokens at `position` and after."""

    def reset(self) -> None:
        """Forget everything: position 0, caches zeroed."""

    def snapshot(self) -> Snapshot:
        """Copy what a later `restore` cannot get back from the caches (the rings; nothing when there are none)."""

    def restore(self, snapshot: Snapshot) -> None:
        """Return to a snapshot. Positions below the snapshot's must not have been rewritten with other tokens."""

    def close(self) -> None:
        """Release everything. Closing twice is fine."""
