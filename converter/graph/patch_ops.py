"""The ops that only an encoder of image patches needs; patch.py appends them to a graph.

N patches of an image, a number or ANY, in any order. positions int32 [B, N, 2]: of each its column and its row in the
image, both -1 where it only pads.
"""

from dataclasses import dataclass

from gemma_edge.converter.graph.values import Value
from gemma_edge.converter.tensors import TensorSpec


@dataclass(frozen=True, eq=False)
class PositionRows:
    """The sum of two rows of table [2 * P, D] for each patch: its column's, of the first P, and its row's, behind them.

    What pads reads those of column and row 0.
    """

    positions: Value
    table: TensorSpec
    out: Value  # [B, N, D]


@dataclass(frozen=True, eq=False)
class AxialAngles:
    """Angles by which to turn the heads of a patch, [B, N, 1, E]: its column's for the first half of E, then its row's.

    Of each half, Q = E / 4 pairs: the angles theta ** (-i / Q) * position, first negated, then as they are, so that
    cos and sin of them multiply [a, b] and [b, a] to what turns (a, b).
    """

    positions: Value
    theta: float
    out: Value


@dataclass(frozen=True, eq=False)
class FullAttention:
    """softmax(q k^T + bias) v in every head; q, k, v [B, N, H, E], the scale already in q, bias [B, N], of each key."""

    q: Value
    k: Value
    v: Value
    bias: Value
    out: Value


@dataclass(frozen=True, eq=False)
class PoolingWeights:
    """[B, M, N], which times [B, N, D] gives means over squares of `size` x `size` patches, row by row of the image.

    M is N / size^2. What pads counts to the first square: it has to be 0. The image has whole squares.
    """

    positions: Value
    size: int
    out: Value


Op = PositionRows | AxialAngles | FullAttention | PoolingWeights
