"""A weight as emitters see it: named, shaped, encoded, and with a place in a file that is filled later."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from numpy.typing import NDArray

from gemma_edge.converter.quantize.quantize import Quantized
from gemma_edge.runtime.formats import hadamard
from gemma_edge.runtime.formats.encoding import Encoding

SPLIT_BYTES = 32 << 20  # matrices above this are multiplied in row slices: it bounds what a kernel packs at once

Write: TypeAlias = Callable[[NDArray[Any], int], None]
"""write(values, offset): values at a byte offset of the section or file."""


@dataclass(frozen=True)
class StoredWeight:
    """A named matrix or vector and how its values are stored. alias: what it is called where it is read as another."""

    name: str
    shape: tuple[int, ...]
    encoding: Encoding
    turned: bool = False  # see runtime/formats/hadamard.py
    alias: str = ""

    @property
    def label(self) -> str:
        """Its name in the file."""
        return (self.alias or self.name) + hadamard.SUFFIX * self.turned

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of data (of the whole vector for a vector)."""
        return self.encoding.data_bytes(self.shape) // (self.shape[0] if len(self.shape) == 2 else 1)


class Placed(Protocol):
    """A weight with a place, which knows how its format spells quantized rows."""

    @property
    def weight(self) -> StoredWeight:
        """What is stored."""

    def put(self, row: int, rows: Quantized, write: Write) -> None:
        """Write rows [row, row + n) (a vector is one row). Called from several threads, for different rows."""


def row_slices(rows: int, row_bytes: int) -> list[tuple[int, int]]:
    """[first, last) row ranges of at most about SPLIT_BYTES; multiples of 64 rows keep every slice 64-byte aligned."""
    parts = max(1, -(-rows * row_bytes // SPLIT_BYTES))
    step = -(-rows // parts // 64) * 64 if parts > 1 else rows
    return [(first, min(first + step, rows)) for first in range(0, rows, step)]
