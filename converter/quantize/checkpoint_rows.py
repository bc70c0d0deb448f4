"""Weights of a file that is a checkpoint as well, as a graph uses them: for formats whose files can be converted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.tensors import TensorSpec

Float32 = NDArray[np.float32]

_ENCODINGS: Final = {
    "F32": "fp32", "F16": "fp16", "BF16": "bf16", "Q8_0": "int8-b32", "Q4_0": "int4-b32", "Q4_1": "int4-b32",
    "Q5_0": "int4-b32", "Q5_1": "int4-b32", "Q4_K": "int4-b32", "Q5_K": "int4-b32", "Q6_K": "int4-b32",
    "Q3_K": "int2-b32", "Q2_K": "int2-b32",
}  # fmt: skip
"""By how they are stored, ours that is as fine or coarser."""


@dataclass(frozen=True)
class CheckpointRows:
    """See packed_rows.StoredRows. spec: of the model that the file holds, whose fold is done."""

    checkpoint: Checkpoint
    spec: TensorSpec

    @property
    def encoding_name(self) -> str:
        """See packed_rows.StoredRows."""
        tensor = self.checkpoint.resolve(self.spec.source)
        assert tensor is not None
        if tensor.scales is None:
            return _ENCODINGS.get(tensor.dtype, "fp32")
        groups = tensor.scales.shape[1]
        return f"int{tensor.dtype[1]}" + (f"-b{self.columns // groups}" if groups > 1 else "")

    @property
    def columns(self) -> int:
        """Of each row."""
        return self.spec.shape[-1]

    @property
    def count(self) -> int:
        """How many rows."""
        return self.spec.shape[0] if len(self.spec.shape) == 2 else 1

    @property
    def turned(self) -> bool:
        """Never: no checkpoint has turned columns."""
        return False

    def rows(self, first: int, last: int) -> Float32:
        """Rows [first, last), float32 [n, columns]. Raises CheckpointError as reading does."""
        if len(self.spec.shape) != 2:
            return self.spec.fold(self.checkpoint.read(self.spec.source))[np.newaxis]
        parts = self.checkpoint.rows(self.spec.source, start=first, stop=min(last, self.count))
        return np.concatenate([self.spec.fold(rows.copy(), row) for row, rows in parts])


def rows_of(checkpoint: Checkpoint, specs: Mapping[str, TensorSpec]) -> dict[str, list[CheckpointRows]]:
    """Those of `specs` that are stored there with as many columns, and rows enough."""
    found = {}
    for name, spec in specs.items():
        tensor = checkpoint.resolve(spec.source)
        if spec.derivation is not None or tensor is None or len(tensor.shape) != len(spec.shape):
            continue
        if tensor.shape[1:] == spec.shape[1:] and tensor.shape[0] >= spec.shape[0]:
            found[name] = [CheckpointRows(checkpoint, spec)]
    return found
