"""What a format makes of a plan, to the byte, before a weight is read."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.plan.plan import Plan
from gemma_edge.converter.quantize.quantize import QuantError
from gemma_edge.converter.quantize.stream import NO_ROUNDS, Look, Round


class Section(Protocol):
    """A section, or a file of a directory."""

    @property
    def name(self) -> str:
        """As its format calls it."""

    @property
    def nbytes(self) -> int:
        """Its exact size."""


class Bundle(Protocol):
    """An output laid out, without its weights."""

    @property
    def plan(self) -> Plan:
        """What is laid out."""

    @property
    def sections(self) -> Sequence[Section]:
        """In the order of the file."""

    @property
    def nbytes(self) -> int:
        """Of the whole output, header and padding included."""

    @property
    def tokenizer(self) -> bytes:
        """A serialised SentencePiece model."""

    def write(
        self,
        output: Any,
        source: Checkpoint,
        identity: Callable[[], str],
        on_read: Callable[[int], None],
        rounds: Mapping[str, Round] = NO_ROUNDS,
        look: Look | None = None,
    ) -> dict[str, QuantError]:
        """Stream the weights through. output: a file or a directory, as the format has it. Errors by tensor name."""
