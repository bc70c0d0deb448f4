"""What bundles predict, decoded in a thread of its own while the checkpoint is evaluated.

A bundle decodes token by token and reads its weights for each: most of a verification, and all of it while other code
could run. Logits wait in a file without a name, 1 MiB for a token of Gemma's vocabulary, and not in memory.
"""

import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Final, Self

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.verify.errors import VerifyError
from gemma_edge.converter.verify.measure.subject import CachedRows, Subject
from gemma_edge.converter.verify.measure.text import Windows

Float32 = NDArray[np.float32]

SPOOL_BYTES: Final = 1 << 30  # 1024 tokens of Gemma's vocabulary; a bundle that is further ahead waits


class Decoding:
    """Logits of all bundles, position by position, and the first bundle's cache after the sample.

    A context: leaving it ends the decoding, finished or not.
    """

    def __init__(
        self, subjects: Sequence[Subject], windows: Windows, sample: int, vocab_size: int, on_token: Callable[[], None]
    ) -> None:
        """sample: so many positions at the start are kept whole. on_token: called after each position of all bundles.

        Raises VerifyError where there is no room for the file.
        """
        self._subjects = subjects
        self._windows = windows
        self._on_token = on_token
        row_bytes = 4 * vocab_size * len(subjects)
        capacity = min(windows.size, max(1, SPOOL_BYTES // row_bytes))
        self._spool = _Rows.in_a_file(capacity, (len(subjects), vocab_size), subjects[0])
        self._sample = _Rows.in_a_file(sample, (vocab_size,), subjects[0])
        self._cached: CachedRows = {}
        self._written = self._read = 0
        self._is_closed = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)

    def rows(self) -> Iterator[Float32]:
        """[bundles, V] of each position in turn; the memory is used again later. Raises what decoding raised."""
        for position in range(self._windows.size):
            self._wait_for(position + 1)
            yield self._spool.read(position)
            with self._changed:
                self._read = position + 1
                self._changed.notify_all()

    def sample(self) -> tuple[Float32, CachedRows]:
        """The first bundle's logits [S, V] after each token of the sample, and what its layers cached until then."""
        self._wait_for(self._sample.count)
        return self._sample.mapped(), self._cached

    def _wait_for(self, rows: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._written >= rows or self._error is not None)
            if self._written < rows:
                assert self._error is not None
                raise self._error

    def _run(self) -> None:
        try:
            for position, row in enumerate(zip(*(self._decoded(subject) for subject in self._subjects), strict=True)):
                if not self._has_room(position):
                    return
                self._spool.write(position, np.stack(row))
                if position < self._sample.count:
                    self._sample.write(position, row[0])
                    if position + 1 == self._sample.count:
                        self._cached = self._subjects[0].cached_rows()
                with self._changed:
                    self._written = position + 1
                    self._changed.notify_all()
                self._on_token()
        except BaseException as error:  # raised where the rows are read
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _has_room(self, position: int) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or position - self._read < self._spool.count)
            return not self._is_closed

    def _decoded(self, subject: Subject) -> Iterator[Float32]:
        for window in self._windows:
            yield from subject.score(window.tolist())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()
        self._spool.file.close()
        self._sample.file.close()  # what is mapped of it stays


@dataclass(frozen=True)
class _Rows:
    """So many rows in a file, each in the place of the one `count` before it. buffer: what was read last."""

    file: IO[bytes]
    count: int
    buffer: Float32

    @classmethod
    def in_a_file(cls, count: int, shape: tuple[int, ...], subject: Subject) -> Self:
        """On the disk that holds packed weights, in a file without a name."""
        folder = subject.folder if subject.folder is not None and subject.folder.is_dir() else None
        rows = cls(tempfile.TemporaryFile(dir=folder, buffering=0), count, np.empty(shape, np.float32))  # noqa: SIM115
        nbytes = count * rows.buffer.nbytes
        try:
            os.posix_fallocate(rows.file.fileno(), 0, nbytes)  # at the start, and not minutes later
        except OSError as error:
            raise VerifyError(
                f"{folder or tempfile.gettempdir()}: no room for {nbytes >> 20} MiB of logits ({error.strerror}); "
                "give a --cache-dir on another disk"
            ) from error
        return rows

    def write(self, position: int, row: Float32) -> None:
        os.pwrite(self.file.fileno(), row.data, position % self.count * self.buffer.nbytes)

    def read(self, position: int) -> Float32:
        """The memory is used again by the next call."""
        os.preadv(self.file.fileno(), [self.buffer.data], position % self.count * self.buffer.nbytes)
        return self.buffer

    def mapped(self) -> Float32:
        """All rows, [count, ...]."""
        return np.asarray(np.memmap(self.file, np.float32, "r", shape=(self.count, *self.buffer.shape)))
