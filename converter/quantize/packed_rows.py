"""Rows of a weight as a file holds them, and as numbers again: what a format reads of its own files."""

from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gemma_edge.runtime.formats.encoding import Encoding, with_rests

Float32 = NDArray[np.float32]

_RESTS = Encoding.parse("head+3")


class StoredRows(Protocol):
    """Some rows of a matrix, or a vector as one row, wherever they lie."""

    @property
    def encoding_name(self) -> str:
        """ "int4", or "int4-b32" where 32 columns share a scale."""

    @property
    def columns(self) -> int:
        """Of each row."""

    @property
    def count(self) -> int:
        """How many rows."""

    @property
    def turned(self) -> bool:
        """Whether its columns are, see formats/hadamard.py."""

    def rows(self, first: int, last: int) -> Float32:
        """Rows [first, last), float32 [n, columns]."""


@dataclass(frozen=True)
class PackedRows:
    """Some rows of a matrix, or a vector as one row.

    data: uint8 [rows, bytes per row]. scales: [rows, groups of columns that share one], None for floats.
    flip: bits that differ from the encoding's in every byte. turned: whether its columns are, see formats/hadamard.py.
    rests: of a table that is the head's, three bits more of each value, as formats/encoding.py packs them. factor: what
    rows are multiplied by when they are looked up.
    """

    encoding: Encoding  # without blocks: the groups say how many columns share a scale
    columns: int
    data: NDArray[np.uint8]
    scales: NDArray[Any] | None
    flip: int = 0
    turned: bool = False
    rests: NDArray[np.uint8] | None = None
    factor: float = 1.0

    @property
    def count(self) -> int:
        """How many rows."""
        return len(self.data)

    @property
    def encoding_name(self) -> str:
        """With its blocks."""
        if self.rests is not None:
            return _RESTS.name
        groups = 1 if self.scales is None else self.scales.shape[1]
        return self.encoding.name + (f"-b{self.columns // groups}" if groups > 1 else "")

    def rows(self, first: int, last: int) -> Float32:
        """Rows [first, last), float32 [n, columns]."""
        values = self._rows(first, last)
        return values if self.factor == 1.0 else values * np.float32(self.factor)

    def _rows(self, first: int, last: int) -> Float32:
        data = self.data[first:last]
        if self.scales is None:
            values: Float32 = self.encoding.unpack(data.reshape(-1), (len(data), self.columns)).astype(np.float32)
            return values
        if self.encoding.bits == 8:
            values = (data ^ np.uint8(self.flip)).view(np.int8).astype(np.float32)  # [n, columns]
        else:
            values = _byte_values(self.encoding, self.flip)[data].view(np.float32)  # [n, columns]
        if self.rests is not None:
            rests = _RESTS.unpack(self.rests[first:last].reshape(-1), values.shape)
            values = with_rests(values, rests)
        groups = values.reshape(len(data), self.scales.shape[1], -1)  # [n, groups, columns / groups]
        groups *= self.scales[first:last].astype(np.float32)[..., None]
        return values


@cache
def _byte_values(encoding: Encoding, flip: int) -> NDArray[Any]:
    """What each byte holds: 256 entries of one, two or four float32 side by side, so that one look-up unpacks them.

    At 960 M values/s on one core of x86-64, where shifting nibbles apart does 260.
    """
    per_byte = 8 // encoding.bits
    data = np.arange(256, dtype=np.uint8) ^ np.uint8(flip)
    entry = {1: np.float32, 2: np.float64, 4: np.complex128}[per_byte]  # of the right width; never used as numbers
    return encoding.unpack(data, (256, per_byte)).astype(np.float32).view(entry).reshape(256)
