"""Facts about a model's tensors: what they are called, how large they are and what they are for.

A fact knows nothing of bits, files or devices. A recipe turns a role into an encoding (a decision), the writer turns
both into bytes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gemma_edge.runtime.formats import hadamard

HEAD: Final = "lm_head.weight"
"""The graph's name of the head."""


class Role(StrEnum):
    """What a tensor does; the only thing a recipe may look at besides the shape."""

    EMBEDDING = "embedding"  # token embedding table, one row read per token
    PLE = "ple"  # per-layer embedding table, one row read per token
    HEAD = "head"  # LM head, read in full for every decoded token
    ATTENTION = "attention"  # q, k, v, o projections
    FFN = "ffn"  # gate, up, down projections
    ALTUP = "altup"  # altup (un)embed projections and per_layer_model_projection
    SMALL = "small"  # per-layer input gates and projections, LAuReL: small and sensitive
    ROUTER = "router"  # AltUp modality routers and coefficients, a few values each
    NORM = "norm"  # vectors of norms and scales, always float32
    VISION = "vision"  # matrices of the vision encoder: 1x1 convolutions, attention, adapter
    AUDIO = "audio"  # matrices of the audio encoder
    KERNEL = "kernel"  # kernels of both encoders' convolutions: small, and kept as floats


@dataclass(frozen=True, eq=False)
class Factors:
    """What each row, or each column, is multiplied by: powers of two, so that no bit is lost. values: float32 [n]."""

    values: NDArray[np.float32]


@dataclass(frozen=True)
class Fold:
    """What is done once, at conversion, to a stored weight, in float32: clip to [-clip, clip], then (w + add) * mul.

    rows, columns: after that, factors that other weights make up for (quantize/balance.py); a vector's values are rows.
    hadamard: whether blocks of columns are turned at last; whoever multiplies by it turns its inputs as well.
    """

    add: float = 0.0
    mul: float = 1.0
    clip: float | None = None
    rows: Factors | None = None
    columns: Factors | None = None
    hadamard: bool = False

    def __call__(self, rows: NDArray[np.float32], first: int = 0) -> NDArray[np.float32]:
        """Fold in place and return `rows` (any shape), from row `first` on; an identity fold touches nothing."""
        if self.clip is not None:
            np.clip(rows, -self.clip, self.clip, out=rows)
        if self.add != 0.0:
            np.add(rows, np.float32(self.add), out=rows)
        if self.mul != 1.0:
            np.multiply(rows, np.float32(self.mul), out=rows)
        if self.rows is not None:
            part = self.rows.values[first : first + len(rows)]
            np.multiply(rows, part.reshape(-1, *[1] * (rows.ndim - 1)), out=rows)
        if self.columns is not None:
            np.multiply(rows, self.columns.values, out=rows)
        return hadamard.turn_exactly(rows) if self.hadamard else rows


AS_STORED = Fold()


@dataclass(frozen=True)
class StaticScales:
    """Of the int8 levels that a linear layer's inputs and outputs were trained on; 0.0: on none.

    Source: transformers integrations/gemma_quant.py, apply_srq.
    """

    inputs: float
    outputs: float


@dataclass(frozen=True)
class SourceTensor:
    """A tensor of the checkpoint: its Hugging Face name without the checkpoint's prefix, and its shape there.

    row: the one that is read, of a table. is_bound: whether it may be infinite, where it bounds other values.
    """

    source: str
    shape: tuple[int, ...]
    row: int | None = None
    is_bound: bool = False


@dataclass(frozen=True)
class Derivation:
    """Values that are computed once, at conversion, from stored tensors, or rows of them; so these have to be small.

    compute: takes the float32 values of `sources`, in their order, and returns float32.
    """

    sources: tuple[SourceTensor, ...]
    compute: Callable[..., NDArray[np.float32]]


@dataclass(frozen=True)
class Overlay:
    """Rows [first_row, first_row + rows) of a table that are computed from other tensors, and not folded."""

    first_row: int
    rows: int
    derivation: Derivation


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the model as the graph uses it.

    name: the graph's own name, unique in a model ("lm_head.weight").
    source: the Hugging Face name without the checkpoint's prefix ("embed_tokens.weight" when the head is tied); of a
        derived tensor, the first one it follows from.
    shape: [rows, columns] for matrices (rows are outputs), [n] for vectors; as stored, unless it is derived.
    stored_shape: in the checkpoint, where it differs: [rows, columns, 1, 1] of a 1 x 1 convolution.
    derivation: how the values follow from stored ones; None where they are the stored ones, folded.
    overlays: rows that replace the stored ones.
    parts: equal stretches of columns with a use of their own: of a row of per-layer embeddings, one for each layer.
    sparse_inputs: whether most of what a matrix is multiplied with is zero.
    factor: of a table, what its rows are multiplied by once they are looked up.
    static: of a linear layer, the levels of its inputs and outputs, where the checkpoint has any.
    grid: the stored dtype, if the values were trained on a 4-bit grid and are rounded to it, see quantize/qat_grid.py.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    role: Role
    fold: Fold = AS_STORED
    derivation: Derivation | None = None
    overlays: tuple[Overlay, ...] = ()
    stored_shape: tuple[int, ...] | None = None
    grid: str | None = None
    parts: int = 1
    sparse_inputs: bool = False
    factor: float = 1.0
    static: StaticScales | None = None

    @classmethod
    def derived(cls, name: str, shape: tuple[int, ...], role: Role, derivation: Derivation) -> "TensorSpec":
        """A tensor that is computed from stored ones."""
        return cls(name, derivation.sources[0].source, shape, role, derivation=derivation)

    @property
    def stored(self) -> tuple[SourceTensor, ...]:
        """Every tensor of the checkpoint that it is made of."""
        own = (
            self.derivation.sources
            if self.derivation
            else (SourceTensor(self.source, self.stored_shape or self.shape),)
        )
        return (*own, *(source for overlay in self.overlays for source in overlay.derivation.sources))

    @property
    def values(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)
