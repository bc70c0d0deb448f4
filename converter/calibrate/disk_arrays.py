"""Activations of more tokens than memory holds."""

import math
import os
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.evaluate.machine import Allocate

Float32 = NDArray[np.float32]


def arrays_in(directory: Path) -> Allocate:
    """Arrays that lie in files of that directory, each without a name and gone before long when its array is.

    What is in memory of them is page cache, which the system takes back when it is short of memory.
    Raises OSError where the disk is full.
    """
    return _Files(directory).allocate


@dataclass
class _Files:
    """Files whose arrays are gone serve again: a new one costs more, page by page, than most of what is written to it.

    spare: those that are mapped and not in use. living, peak: bytes that are in use, and were at most; spare ones are
    given up before all together take more than that.
    """

    directory: Path
    spare: list[Float32] = field(default_factory=list)
    living: int = 0
    peak: int = 0

    def allocate(self, shape: tuple[int, ...]) -> Float32:
        """See Allocate."""
        size = math.prod(shape)
        fitting = next((i for i, memory in enumerate(self.spare) if memory.size == size), None)
        self.living += 4 * size
        self.peak = max(self.peak, self.living)
        if fitting is None:
            while self.spare and self.living + sum(memory.nbytes for memory in self.spare) > self.peak:
                del self.spare[0]
            memory = self._new(size)
        else:
            memory = self.spare.pop(fitting)
        lent = memory.view()  # whoever has a part of the array holds this
        weakref.finalize(lent, self._take_back, memory)
        return np.asarray(lent).reshape(shape)

    def _take_back(self, memory: Float32) -> None:
        self.living -= memory.nbytes
        self.spare.append(memory)

    def _new(self, size: int) -> Float32:
        with TemporaryFile(dir=self.directory) as file:
            if hasattr(os, "posix_fallocate"):  # else a disk that is full is found by a signal
                try:
                    os.posix_fallocate(file.fileno(), 0, 4 * size)
                except OSError:
                    self.living -= 4 * size
                    raise
            return np.memmap(file, np.float32, "r+", shape=(size,))
