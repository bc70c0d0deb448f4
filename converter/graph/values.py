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


def broadcast(a: Operand, b: Operand) -> Shape:
    """The shape of an elementwise op's result, by NumPy's rule: right-aligned, a 1 stretches."""
    first, second = (() if isinstance(operand, float) else operand.shape for operand in (a, b))
    rank = max(len(first), len(second))
    pairs = list(zip((1,) * (rank - len(first)) + first, (1,) * (rank - len(second)) + second, strict=True))
    assert all(m == n or 1 in (m, n) for m, n in pairs), (first, second)
    return tuple(n if m == 1 else m for m, n in pairs)
