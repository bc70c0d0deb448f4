"""The int8 levels of linear layers' inputs and outputs, where a checkpoint stores any: part of what it computes."""

from collections.abc import Mapping
from dataclasses import replace

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.checkpoint.safetensors_file import CheckpointError
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.tensors import StaticScales, TensorSpec


def with_static_scales(model: Model, checkpoint: Checkpoint) -> Model:
    """`model` with them; the same object where there are none. What a weight is multiplied by, outputs are as well.

    Raises CheckpointError for a matrix that is multiplied out at conversion, where its outputs have levels.
    """
    found = _scaled(model.tensors, checkpoint)
    encoders = tuple(
        replace(encoder, tensors={**encoder.tensors, **own})
        if (own := _scaled(encoder.tensors, checkpoint))
        else encoder
        for encoder in model.encoders
    )
    if not found and encoders == model.encoders:
        return model
    return replace(model, tensors={**model.tensors, **found}, encoders=encoders)


def _scaled(specs: Mapping[str, TensorSpec], checkpoint: Checkpoint) -> dict[str, TensorSpec]:
    """Those that have any."""
    found = {}
    for name, spec in specs.items():
        tensor = checkpoint.resolve(spec.source)
        if tensor is None or tensor.static is None:
            continue
        if spec.derivation is None:
            scales = StaticScales(tensor.static.inputs, tensor.static.outputs * spec.fold.mul)
            found[name] = replace(spec, static=scales)
        elif all(part.row is None for part in spec.stored):
            raise CheckpointError(
                f"{checkpoint.path}: {tensor.name} has scales of activations, expected none: it is multiplied out at "
                "conversion; leave its modality out of --modalities"
            )
    return found
