"""Rows of a table that lies in a file, read when they are asked for.

A page of a mapped table counts to the process, and with it what lies around it, which the kernel maps as well wherever
it is in memory anyway: E2B's two tables came to 209 MiB in 150 tokens. What is read leaves the kernel's own copy alone,
the first thing that it drops when memory is short.
"""

import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gemma_edge.runtime.executors.base import ExecutorError


class RowsInFile:
    """Values of one type from a byte of a file on; shape: (rows, columns...). Raises OSError: it cannot be opened."""

    def __init__(self, path: Path, offset: int, shape: Sequence[int], dtype: DTypeLike) -> None:
        self.shape = tuple(shape)
        self._path, self._offset, self._dtype = path, offset, np.dtype(dtype)
        self._row_bytes = int(np.prod(self.shape[1:], dtype=np.int64)) * self._dtype.itemsize
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        os.posix_fadvise(self._file, offset, self.shape[0] * self._row_bytes, os.POSIX_FADV_RANDOM)

    def __getitem__(self, ids: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """The rows of `ids`, [n], each from 0 to rows - 1: [n, columns...].

        Raises ExecutorError: the file has become shorter since it was opened.
        """
        rows = np.empty((len(ids), self._row_bytes), np.uint8)
        for index, row in zip(ids.tolist(), rows, strict=True):
            if os.preadv(self._file, [row.data], self._offset + index * self._row_bytes) != self._row_bytes:
                raise ExecutorError(f"{self._path}: ends before row {index} of a table; it was changed, copy it again")
        return rows.view(self._dtype).reshape(len(ids), *self.shape[1:])
