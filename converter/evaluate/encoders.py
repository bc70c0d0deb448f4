"""An encoder in numpy: the checkpoint's own embeddings of an image or a clip, one weight in memory at a time.

As streaming.py does for the decoder: each op runs when its turn comes, its weight is read for it, and a value is
dropped after the op that reads it last. The official encoders take less than 1.5 GiB and a minute.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.evaluate.machine import operands
from gemma_edge.converter.graph import reference
from gemma_edge.converter.graph.ops import Graph
from gemma_edge.converter.graph.values import Operand, Value
from gemma_edge.converter.tensors import TensorSpec

Array = NDArray[Any]


def run_graph(graph: Graph, checkpoint: Checkpoint, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs by name, float32. For graphs without positions. Raises CheckpointError as reading does."""
    machine = _Machine(checkpoint, {value: inputs[name] for name, value in graph.inputs.items()})
    last_reader = {value: op for op in graph.ops for value in operands(op)}
    kept = set(graph.outputs.values())
    for op in graph.ops:
        machine.values[op.out] = reference.RUN[type(op)](machine, op)  # type: ignore[arg-type]  # reads by []
        for value in set(operands(op)) - kept:
            if last_reader[value] is op:
                del machine.values[value]
    return {name: machine.values[value] for name, value in graph.outputs.items()}


class _Machine:
    """What has been computed so far, and what is in the checkpoint."""

    def __init__(self, checkpoint: Checkpoint, values: dict[Value, Array]) -> None:
        self.values = values
        self._checkpoint = checkpoint

    def __getitem__(self, operand: Operand) -> Any:
        if isinstance(operand, Value):
            return self.values[operand]
        return operand if isinstance(operand, float) else self._weight(operand)

    def _weight(self, spec: TensorSpec) -> NDArray[np.float32]:
        if spec.derivation is not None:
            return self._checkpoint.derive(spec.derivation).reshape(spec.shape)
        return spec.fold(self._checkpoint.read(spec.source)).reshape(spec.shape)
