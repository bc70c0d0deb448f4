"""Matrices on their way into a bundle, handed over to somebody who looks at them before they are gone.

The threads that store a model (quantize/stream.py) come with a few rows of this matrix and of the next ones; the reader
wants one matrix after another, its rows in order. What comes early waits here, within bounds; what is wanted next never
waits for room. As the threads take their work in the order of the file, and the reader asks in the same order, somebody
can always go on.
"""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.quantize.quantize import Quantized
from gemma_edge.converter.quantize.recipes import Storage
from gemma_edge.converter.tensors import TensorSpec

Float32 = NDArray[np.float32]

HELD_BYTES: Final = 48 << 20


class TapClosedError(Exception):
    """The other side has given up; it says why itself."""


@dataclass
class Tap:
    """`put` is called by those who store, `pairs` by the one who reads, in the order of the file.

    readings: how often each matrix is read, by name; one that is read again (a router of Gemma 3n) stays until then.
    """

    readings: dict[str, int]
    storages: Mapping[str, Storage]
    _held: dict[tuple[str, int], tuple[Float32, Float32]] = field(default_factory=dict)
    _held_bytes: int = 0
    _next: tuple[str, int] | None = None
    _is_closed: bool = False
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def put(self, name: str, first: int, rows: Float32, stored: Quantized) -> None:
        """Rows [n, K] from `first` on, as they are and as they are stored. Waits for room."""
        if name not in self.readings or self._is_closed:
            return
        pair = rows.copy(), self.storages[name].encoding.dequantize(stored.data, stored.scales, rows.shape)
        nbytes = sum(part.nbytes for part in pair)
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_closed or self._next == (name, first) or self._held_bytes + nbytes <= HELD_BYTES
            )
            self._held[name, first] = pair
            self._held_bytes += nbytes
            self._changed.notify_all()

    def pairs(self, spec: TensorSpec) -> Iterator[tuple[int, Float32, Float32]]:
        """See side_by_side.Pairs. Raises TapClosedError where nobody stores any more."""
        self.readings[spec.name] -= 1
        first = 0
        while first < spec.shape[0]:
            rows, stored = self._take(spec.name, first)
            yield first, rows, stored
            first += len(rows)

    def close(self) -> None:
        """Nobody reads, or nobody stores, any more: let everyone go who waits."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _take(self, name: str, first: int) -> tuple[Float32, Float32]:
        with self._changed:
            self._next = name, first
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_closed or self._next in self._held)
            if (name, first) not in self._held:
                raise TapClosedError
            pair = self._held[name, first]
            if not self.readings[name]:
                del self._held[name, first]
                self._held_bytes -= sum(part.nbytes for part in pair)
                self._changed.notify_all()
            return pair
