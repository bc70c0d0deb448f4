"""What was said in a conversation, and where its turns began, to go back there."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from gemma_edge.runtime.chat.message_json import Json
from gemma_edge.runtime.chat.prompt_tokens import Encoded
from gemma_edge.runtime.kv.prefix import common_prefix
from gemma_edge.runtime.kv.sequence import TokenSequence


@dataclass(frozen=True)
class _Began:
    """A turn's beginning: how many messages there were, and which tokens it kept and dropped."""

    messages: int
    encoded: Encoded
    kept: int
    dropped: Sequence[int]


class Record:
    """The messages since the preface. encoded: of the tokens that go with them. turns: how many came to their end."""

    def __init__(self) -> None:
        self.messages: list[Json] = []
        self.encoded = Encoded()
        self._began: list[_Began] = []

    @property
    def turns(self) -> int:
        return len(self._began)

    @contextmanager
    def turn(self, sequence: TokenSequence) -> Iterator[None]:
        """One turn, which changes messages and tokens. If it does not come to its end, they are as they were before."""
        messages, encoded, held = len(self.messages), self.encoded, sequence.token_ids
        is_whole = False
        try:
            yield
            is_whole = True
        finally:  # GeneratorExit too: whoever reads a stream has left
            kept = common_prefix(held, sequence.token_ids)
            began = _Began(messages, encoded, kept, held[kept:])
            if is_whole:
                self._began.append(began)
            else:
                self._go_back(began, sequence)

    def rewind(self, turns: int, sequence: TokenSequence) -> None:
        """Everything is again as it was before the last turns."""
        for _ in range(turns):
            self._go_back(self._began.pop(), sequence)

    def _go_back(self, began: _Began, sequence: TokenSequence) -> None:
        del self.messages[began.messages :]
        self.encoded = began.encoded
        sequence.truncate(began.kept)
        sequence.append(began.dropped)
