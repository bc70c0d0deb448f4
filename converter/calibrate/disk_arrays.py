"""Activations of more tokens than memory holds."""

import math
import os
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.evaluate_machine import Allocate


def arrays_in(directory: Path) -> Allocate:
    """Arrays that lie in files of that directory, each without a name and gone with its array.

    What is in memory of them is page cache, which the system takes back when it is short of memory.
    Raises OSError where the disk is full.
    """

    def allocate(shape: tuple[int, ...]) -> NDArray[np.float32]:
        with TemporaryFile(dir=directory) as file:
            if hasattr(os, "posix_fallocate"):  # else a disk that is full is found by a signal
                os.posix_fallocate(file.fileno(), 0, 4 * math.prod(shape))
            return np.asarray(np.memmap(file, np.float32, "r+", shape=shape))

    return allocate
