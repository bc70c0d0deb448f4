"""Whether a tied embedding is read from the head's table: see rests.py and recipes.py."""

from dataclasses import replace

from gemma_edge.converter.checkpoint.spelling import EMBEDDING
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.quantize.recipes import Recipe
from gemma_edge.converter.tensors import HEAD, Role


def in_one_table(model: Model, recipe: Recipe) -> tuple[Model, Recipe]:
    """`model` and `recipe` with an embedding that is stored as the head is, and multiplied once a row is looked up.

    Where the head's table cannot serve as one, the same model, and a recipe for a table of its own.
    """
    if recipe.roles[Role.EMBEDDING].encoding.kind != "rest":
        return model, recipe
    embedding, head = model.tensors[EMBEDDING], model.tensors[HEAD]
    factor = embedding.factor * embedding.fold.mul / head.fold.mul  # the same again, of a model that has it
    shared = replace(embedding, fold=head.fold, factor=factor, grid=head.grid)
    if recipe.storage(shared).head is None:
        return model, recipe.without_rests()
    return replace(model, tensors={**model.tensors, EMBEDDING: shared}), recipe
