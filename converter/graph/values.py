"""What a graph computes with: values, their shapes and types, and what an elementwise op can take."""

from dataclasses import dataclass
from typing import Final, Literal

from gemma_edge.converter.tensors import TensorSpec

DType = Literal["float32", "int32", "bool"]
Shape = tuple[int, ...]

ANY: Final = -1
"""A T that is known only at run time. One axis at most, so that -1 in a shape means what it means to numpy."""


@dataclass(frozen=True, eq=False)
class Value:
    """Something a graph computes or is given."""

    shape: Shape
    dtype: DType = "float32"


Operand = Value | TensorSpec | float  # what an elementwise op can take
