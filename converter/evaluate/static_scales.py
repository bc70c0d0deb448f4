"""The int8 levels of linear layers' inputs and outputs, where a checkpoint stores any: part of what it computes."""

from dataclasses import replace

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.tensors import StaticScales


def with_static_scales(model: Model, checkpoint: Checkpoint) -> Model:
    """`model` with them; the same object where there are none. What a weight is multiplied by, outputs are as well."""
    found = {}
    for name, spec in model.tensors.items():
        tensor = None if spec.derivation else checkpoint.resolve(spec.source)
        if tensor is not None and tensor.static is not None:
            scales = StaticScales(tensor.static.inputs, tensor.static.outputs * spec.fold.mul)
            found[name] = replace(spec, static=scales)
    return replace(model, tensors={**model.tensors, **found}) if found else model
