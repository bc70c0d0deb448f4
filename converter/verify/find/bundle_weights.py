"""The weights inside a bundle or an ONNX directory as numbers again, by the graph's names.

Only files of this project carry those names. Rows are dequantized when asked for; the files are mapped, not read.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.plan.output import reader_of
from gemma_edge.converter.quantize.packed_rows import StoredRows
from gemma_edge.converter.tensors import TensorSpec

Float32 = NDArray[np.float32]

_BLOCK_BYTES = 16 << 20  # of numbers


@dataclass(frozen=True)
class BundleWeights:
    """All weights of one bundle. packed: of each its rows, in one piece or several, one after the other."""

    packed: Mapping[str, tuple[StoredRows, ...]]

    @classmethod
    def of(cls, path: Path, specs: Mapping[str, TensorSpec]) -> "BundleWeights":
        """What of `specs` is there, under its name. Raises BundleError, OnnxDirectoryError: it is damaged."""
        stored = reader_of(path).stored_rows(path, specs)
        found = {}
        for name, spec in specs.items():
            rows = spec.shape[0] if len(spec.shape) == 2 else 1
            parts = tuple(stored.get(name, ()))
            if sum(part.count for part in parts) == rows and all(p.columns == spec.shape[-1] for p in parts):
                found[name] = parts
        return cls(found)

    @property
    def turned(self) -> frozenset[str]:
        """The names of matrices whose columns are turned."""
        return frozenset(name for name, parts in self.packed.items() if parts[0].turned)

    def __contains__(self, name: str) -> bool:
        return name in self.packed

    def encoding(self, name: str) -> str:
        """ "int4", or "int4-b32" where 32 columns share a scale."""
        return self.packed[name][0].encoding_name

    def rows(self, name: str, first: int, count: int) -> Float32:
        """Rows [first, first + count) of a matrix, float32 [count, K]."""
        parts = []
        for packed in self.packed[name]:
            last = min(first + count, packed.count)
            if first < last:
                parts.append(packed.rows(first, last))
                first, count = 0, count - len(parts[-1])
            else:
                first -= packed.count
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def read(self, spec: TensorSpec, start: int, stop: int | None) -> Iterator[tuple[int, Float32]]:
        """evaluate.machine.Read: the bundle's values alone."""
        if len(spec.shape) == 1:
            yield 0, self.rows(spec.name, 0, 1)[0]
            return
        stop = spec.shape[0] if stop is None else stop
        step = max(1, _BLOCK_BYTES // (4 * spec.shape[1]))
        for first in range(start, stop, step):
            yield first, self.rows(spec.name, first, min(step, stop - first))

    def substitute(self, name: str, first: int, rows: Float32) -> Float32:
        """evaluate.streaming.Substitute: the bundle's values in the place of the checkpoint's."""
        if rows.ndim == 1:
            vector: Float32 = self.rows(name, 0, 1)[0]
            return vector
        return self.rows(name, first, len(rows))
