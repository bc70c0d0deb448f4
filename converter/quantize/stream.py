"""Weights on their way: checkpoint -> fold -> quantize -> file, a few megabytes at a time, on several threads.

Nothing is decided here. A chunk of rows is read, folded, quantized and written to the place the plan gave it; memory
is (threads x chunk), however large the model.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.evaluate.products import CORES
from gemma_edge.converter.quantize.qat_grid import as_stored
from gemma_edge.converter.quantize.quantize import QuantError, Quantized, QuantizeError
from gemma_edge.converter.quantize.recipes import Storage
from gemma_edge.converter.quantize.stored import Placed
from gemma_edge.converter.tensors import Derivation, TensorSpec
from gemma_edge.runtime.formats import hadamard

CHUNK_BYTES = 4 << 20  # stored bytes read per step and thread
_TASK_BYTES = 64 << 20  # rows of one tensor that one thread takes at a time
THREADS = min(4, 1 + CORES)  # one more than cores: they wait for the disk too

Chunks: TypeAlias = Iterator[tuple[int, NDArray[np.float32]]]
"""(first row, final float32 values) of consecutive rows; a tensor that is no matrix is one chunk."""

Quantizer: TypeAlias = Callable[[int, NDArray[np.float32]], Quantized]
"""(first row, final float32 rows [n, k]) -> how they are stored. Called from several threads."""

Look: TypeAlias = Callable[[str, int, NDArray[np.float32], Quantized], None]
"""Called with (name, first row, final float32 rows, how they are stored) of every chunk, from several threads."""

NO_QUANTIZERS: Mapping[str, Quantizer] = MappingProxyType({})


@dataclass(frozen=True)
class Stream:
    """Weights on their way into `file`, where what they belong to (a section, a data file) begins at byte `begin`.

    quantizers: by name, for tensors whose values are not rounded each by itself; see calibrate/. look: for whoever
        measures.
    rounded_bytes: stored bytes a step and thread of tensors with a quantizer. One that goes column by column wants many
        rows.
    """

    checkpoint: Checkpoint
    specs: Mapping[str, TensorSpec]
    storages: Mapping[str, Storage]
    file: BinaryIO
    begin: int
    quantizers: Mapping[str, Quantizer] = field(default_factory=lambda: NO_QUANTIZERS)
    look: Look | None = None
    rounded_bytes: int = 32 << 20

    def write(self, weights: Iterable[Placed], on_bytes: Callable[[int], None]) -> dict[str, QuantError]:
        """Write every weight; errors by tensor name.

        on_bytes(n) is called from worker threads after every n bytes of weights; a value counts as two, however it is
        stored in the checkpoint.
        Raises CheckpointError or QuantizeError naming the tensor; OSError when the disk is full.
        """
        errors: dict[str, QuantError] = {}
        with ThreadPoolExecutor(THREADS, thread_name_prefix="convert") as pool:
            tasks: list[tuple[str, Future[QuantError]]] = []
            for placed in weights:
                for chunks in self._parts(placed):
                    tasks.append((placed.weight.name, pool.submit(self._write_rows, placed, chunks, on_bytes)))
            try:
                for name, task in tasks:  # in order, so that the sums come out the same every time
                    errors[name] = errors.get(name, QuantError()) + task.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return errors

    def put(self, data: bytes | NDArray[Any], offset: int) -> None:
        """Write all of `data`, `offset` bytes after `begin`."""
        write_at(self.file, data, self.begin + offset)

    def _parts(self, placed: Placed) -> Iterator[Chunks]:
        """The rows of one tensor in parts for different threads; nothing is read before a part is iterated."""
        spec = self.specs[placed.weight.name]
        if spec.derivation:
            yield self._derived(0, spec.derivation)
            return
        tensor = self.checkpoint.resolve(spec.source)
        assert tensor is not None  # the plan matched it
        if len(spec.shape) != 2:
            yield self._whole(spec)
            return
        step = max(1, spec.shape[0] * _TASK_BYTES // tensor.nbytes)
        for begin, end in _without(spec):
            for first in range(begin, end, step):
                yield self._folded(spec, first, min(first + step, end))
        for overlay in spec.overlays:
            yield self._derived(overlay.first_row, overlay.derivation, is_turned=spec.fold.hadamard)

    def _folded(self, spec: TensorSpec, first: int, last: int) -> Chunks:
        chunk_bytes = self.rounded_bytes if spec.name in self.quantizers else CHUNK_BYTES
        for row, values in self.checkpoint.rows(spec.source, chunk_bytes, first, last):
            yield row, spec.fold(values, row)

    def _whole(self, spec: TensorSpec) -> Chunks:
        yield 0, spec.fold(self.checkpoint.read(spec.source))

    def _derived(self, first_row: int, derivation: Derivation, is_turned: bool = False) -> Chunks:
        rows = self.checkpoint.derive(derivation)
        yield first_row, hadamard.turn_exactly(rows) if is_turned else rows

    def _write_rows(self, placed: Placed, chunks: Chunks, on_bytes: Callable[[int], None]) -> QuantError:
        spec = self.specs[placed.weight.name]
        total = QuantError()
        for row, values in chunks:
            try:
                stored = self._round(spec.name, row, values)
            except QuantizeError as error:
                raise QuantizeError(f"{spec.source}: {error}") from error
            placed.put(row, stored, self.put)
            if self.look is not None:
                self.look(spec.name, row, values, stored)
            total += stored.error
            on_bytes(values.size * 2)
        return total

    def _round(self, name: str, row: int, values: NDArray[np.float32]) -> Quantized:
        if name in self.quantizers:
            return self.quantizers[name](row, values)
        storage = self.storages[name]
        if storage.grid is not None and storage.grid.is_stored:
            spec = self.specs[name]
            codes, scales = self.checkpoint.integers(spec.source, row, row + len(values))
            return as_stored(codes, scales, storage.encoding, values, spec.fold.mul / storage.factor)
        return storage.store(values)


def write_at(file: BinaryIO, data: bytes | NDArray[Any], offset: int) -> None:
    """Write all of `data` there: one call may write less, without an error, where the disk is about to be full."""
    rest = memoryview(data).cast("B")  # type: ignore[arg-type]  # numpy arrays are buffers
    while rest:
        written = os.pwrite(file.fileno(), rest, offset)
        rest, offset = rest[written:], offset + written


def _without(spec: TensorSpec) -> Iterator[tuple[int, int]]:
    """[first, last) row ranges of a matrix that no overlay replaces."""
    begin = 0
    for overlay in sorted(spec.overlays, key=lambda overlay: overlay.first_row):
        yield begin, overlay.first_row
        begin = overlay.first_row + overlay.rows
    yield begin, spec.shape[0]
