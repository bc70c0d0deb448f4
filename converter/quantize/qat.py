"""Which tensors of a checkpoint lie on a 4-bit grid (see qat_grid.py): a fact, found in a few rows of each.

Training put them there, or a GGUF has them as Q4_0, which is such a grid; or a checkpoint stores integers with scales,
as compressed-tensors and transformers' quantizer "gemma" do, and these are kept as they are.

The sample only decides how many bytes a tensor gets. Whether its blocks really lie on a grid is seen block by block
while they are stored, and the report says how many values were kept to the last bit.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.checkpoint.integers.packed import encoding_of
from gemma_edge.converter.checkpoint.safetensors_file import TensorInfo
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.quantize.qat_grid import BLOCK, DTYPES, Q4_0, is_q4_0, lies_on_grid
from gemma_edge.converter.quantize.recipes import Placement, Recipe
from gemma_edge.converter.tensors import TensorSpec
from gemma_edge.runtime.formats.encoding import Encoding

_SAMPLED_ROWS: Final = 4


def sampled_rows(rows: int) -> list[int]:
    """Of a matrix of so many rows, a few in the middle of equal parts."""
    return [(2 * part + 1) * rows // (2 * _SAMPLED_ROWS) for part in range(_SAMPLED_ROWS)]


def with_grids(model: Model, checkpoint: Checkpoint, recipe: Recipe) -> Model:
    """`model` with the grid of each tensor that the recipe lets keep it; the same object where there is none.

    Reads a few rows of each. Tensors that are missing or of another shape are left to Checkpoint.match.
    Raises CheckpointError for values that are no numbers.
    """
    found = _on_grids(model.tensors, checkpoint, recipe)
    encoders = tuple(
        replace(encoder, tensors={**encoder.tensors, **own})
        if (own := _on_grids(encoder.tensors, checkpoint, recipe))
        else encoder
        for encoder in model.encoders
    )
    if not found and encoders == model.encoders:
        return model
    return replace(model, tensors={**model.tensors, **found}, encoders=encoders)


def _on_grids(specs: Mapping[str, TensorSpec], checkpoint: Checkpoint, recipe: Recipe) -> dict[str, TensorSpec]:
    """Those that keep theirs."""
    return {
        name: replace(spec, grid=dtype)
        for name, spec in specs.items()
        if (dtype := _grid_dtype(spec, checkpoint, recipe)) is not None
    }


def _grid_dtype(spec: TensorSpec, checkpoint: Checkpoint, recipe: Recipe) -> str | None:
    """The stored dtype if sampled rows lie on a grid."""
    tensor = checkpoint.resolve(spec.source)
    if spec.derivation or tensor is None or tensor.shape != spec.shape:
        return None
    if tensor.scales is not None:  # an adapter, or a slice, leaves other values than are stored
        is_kept = type(checkpoint) is Checkpoint and recipe.keeps_integers(spec)
        encoding = _encoding(spec, tensor) if is_kept else None
        return None if encoding is None else encoding.name
    if not recipe.keeps_grid(spec) or tensor.dtype not in (*DTYPES, Q4_0):
        return None
    if spec.shape[1] % BLOCK:
        return None
    for row in sampled_rows(spec.shape[0]):
        [(_, values)] = checkpoint.rows(spec.source, start=row, stop=row + 1)
        # What is Q4_0 in a GGUF no longer is where an adapter was merged into it.
        is_on_grid = is_q4_0(values) if tensor.dtype == Q4_0 else lies_on_grid(values)
        if not is_on_grid:  # most checkpoints end here, at the first row
            return None
    return tensor.dtype


def _encoding(spec: TensorSpec, tensor: TensorInfo) -> Encoding | None:
    """Of tables a scale per row, and at least 4 bits, which hold the same: our runtime looks up no rows of 2."""
    encoding = encoding_of(tensor)
    if encoding is None or Placement.of(spec.role) is not Placement.OFFLOADED:
        return encoding
    return None if encoding.block else Encoding("int", max(4, encoding.bits))
