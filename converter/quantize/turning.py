"""Which weights are turned by a Hadamard matrix before they are rounded: see runtime/formats/hadamard.py for why.

The graph follows by itself: whoever multiplies by such a weight turns its inputs (Graph.linear, Graph.embed).
"""

from dataclasses import replace

from gemma_edge.converter.models.family import Model
from gemma_edge.converter.quantize.recipes import ENCODER_ROLES, Recipe
from gemma_edge.converter.tensors import Role, TensorSpec
from gemma_edge.runtime.formats.hadamard import BLOCK


def with_turned_columns(model: Model, recipe: Recipe) -> Model:
    """`model` with the matrices turned that `recipe` wants so and that can be; the same object where there are none."""
    turned = {
        name: replace(spec, fold=replace(spec.fold, hadamard=True))
        for name, spec in model.tensors.items()
        if _is_turned(spec, recipe)
    }
    return replace(model, tensors={**model.tensors, **turned}) if turned else model


def _is_turned(spec: TensorSpec, recipe: Recipe) -> bool:
    """Integers that are chosen here: those of a trained grid would lose it. Inputs that are mostly zero, which int8
    holds exactly, would lose that; rows of per-layer embeddings have scales of their own for each layer; inputs that
    were trained on fixed levels would be on others."""
    storage, role = recipe.storage(spec), spec.role
    if storage.head is not None:
        storage, role = storage.head, Role.HEAD
    if role not in recipe.hadamard or spec.role in ENCODER_ROLES or spec.sparse_inputs or spec.parts > 1:
        return False
    if spec.static is not None:
        return False
    return spec.shape[-1] % BLOCK == 0 and storage.encoding.kind == "int" and storage.grid is None
