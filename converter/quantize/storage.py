"""The decision for one tensor: how it is stored, where it lies, and from what size on it is worth it."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.quantize import qat_grid
from gemma_edge.converter.quantize.qat_grid import Grid
from gemma_edge.converter.quantize.quantize import Quantized, Search, quantize_rows
from gemma_edge.converter.quantize.rests import dequantize_rests, quantize_rests
from gemma_edge.converter.tensors import Role
from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.formats.encoding import Encoding

ENCODER_ROLES = (Role.VISION, Role.AUDIO, Role.KERNEL)
"""What only checkpoints with encoders of images or audio have; a recipe for text need not name them."""


class RecipeError(GemmaEdgeError):
    """A recipe that does not exist, cannot be read, or asks for what no bundle can hold."""


class Placement(StrEnum):
    """Where a tensor lives on the device."""

    RESIDENT = "resident"  # in the decoder's section: read for every token
    OFFLOADED = "offloaded"  # in a mapped section of its own: only touched pages count
    ON_DEMAND = "on demand"  # in an encoder's section: loaded for an image or a clip, then released

    @classmethod
    def of(cls, role: Role) -> "Placement":
        """Tables that are read row by row are offloaded."""
        if role in ENCODER_ROLES:
            return cls.ON_DEMAND
        return cls.OFFLOADED if role in (Role.EMBEDDING, Role.PLE) else cls.RESIDENT


@dataclass(frozen=True)
class Storage:
    """The decision for one tensor. grid: its integers are those it was trained with, where it has any.

    factor: what whoever reads it multiplies by; other factors are folded into what is stored.
    head: of an embedding that is kept in the head's table, the decision for that.
    """

    encoding: Encoding
    search: Search = Search.MSE
    grid: Grid | None = None
    factor: float = 1.0
    head: "Storage | None" = None

    def store(self, rows: NDArray[np.float32]) -> Quantized:
        """`rows` [n, k] (or [k]) as decided, each value for itself. Raises QuantizeError as quantize_rows does."""
        if self.head is not None:
            return quantize_rests(rows, self.head.store(rows), self.head.encoding, self.encoding)
        grid = self.grid
        if grid is not None and grid.is_stored:  # as near as the values tell; Stream has the integers themselves
            grid = Grid(qat_grid.DTYPES[-1]) if grid.encoding == qat_grid.ENCODING else None
        if grid is not None:
            return qat_grid.keep_grid(rows, grid, self.search)
        return quantize_rows(rows, self.encoding, self.search)

    def restored(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """What is read of `rows`, each value for itself; in both the factor is in.

        Of integers that the checkpoint stores, the rows themselves: but for the rounding of a float16 scale of a block.
        """
        if self.head is not None:
            head = self.head.store(rows)
            stored = quantize_rests(rows, head, self.head.encoding, self.encoding)
            return dequantize_rests(stored, head, self.head.encoding, self.encoding, rows.shape)
        if self.grid is not None and self.grid.is_stored:
            return rows
        unfolded = rows if self.factor == 1.0 else rows / np.float32(self.factor)
        stored = self.store(unfolded)
        found = self.encoding.dequantize(stored.data, stored.scales, rows.shape)
        return found if self.factor == 1.0 else found * np.float32(self.factor)


@dataclass(frozen=True)
class Floor:
    """The smallest matrix worth quantizing: one with fewer values, or ragged columns, stays fp32.

    values: at least this many. columns_multiple_of: kernels read integers in groups of this many columns.
    """

    values: int = 0
    columns_multiple_of: int = 1

    def admits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of `shape` may be quantized. Only matrices may."""
        if len(shape) != 2:
            return False
        rows, columns = shape
        return rows * columns >= self.values and columns % self.columns_multiple_of == 0
