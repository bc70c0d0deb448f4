"""The weights inside a GGUF, by the graph's names. A GGUF is a checkpoint, and is read as one."""

from collections.abc import Mapping
from pathlib import Path

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.quantize.checkpoint_rows import CheckpointRows, rows_of
from gemma_edge.converter.tensors import TensorSpec


def stored_rows(path: Path, specs: Mapping[str, TensorSpec]) -> dict[str, list[CheckpointRows]]:
    """Those of `specs`. Raises CheckpointError."""
    return rows_of(Checkpoint.open(path), specs)
