"""The ops that only an audio encoder needs; audio.py appends them to a graph.

Axis 1 is time: frames, a number or ANY. As in ops.py, an op says what is computed, and how time is cut into blocks,
padded or masked is an emitter's business.
"""

from dataclasses import dataclass

from gemma_edge.converter.graph.values import Value
from gemma_edge.converter.tensors import TensorSpec


@dataclass(frozen=True, eq=False)
class Cast:
    """bool -> float32, as 0.0 and 1.0; int32 -> float32; float32 -> bool, whether it is not 0."""

    x: Value
    out: Value


@dataclass(frozen=True, eq=False)
class EveryNth:
    """Entries 0, step, 2 * step, ... of axis 1."""

    x: Value
    step: int
    out: Value


@dataclass(frozen=True, eq=False)
class PadRows:
    """Zeros behind the entries of axis 1, up to `out.shape[1]` of them."""

    x: Value
    out: Value


@dataclass(frozen=True, eq=False)
class CumulativeNorm:
    """Normalise x [B, T, F, C] by mean and variance over F, C and all of time so far, then multiply by weight [C].

    The variance at t is the mean over s <= t of (x_s - mean_s)^2: each step's difference is to its own mean so far.
    """

    x: Value
    weight: TensorSpec
    eps: float
    out: Value


@dataclass(frozen=True, eq=False)
class SlidingAttention:
    """Attention of each step to itself and the P before it, with relative positions (arXiv 1901.02860).

    q, k, v: [B, T, H, E], the scale already in q. relative: [1, H, E, P + 1], what column f says of the step P - f
    back. valid: [B, T], 1.0 for the steps that may be seen; a step that sees none gives anything that is finite.
    A score s is cap * tanh(s / cap) of q k + q relative.
    """

    q: Value
    k: Value
    v: Value
    relative: TensorSpec
    valid: Value
    cap: float
    out: Value

    @property
    def past(self) -> int:
        """P, how many steps before its own a query sees."""
        return self.relative.shape[3] - 1


Op = Cast | EveryNth | PadRows | CumulativeNorm | SlidingAttention
