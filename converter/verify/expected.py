"""What a bundle is compared with: the checkpoint, a slice of it, or one of two models that share their weights."""

from pathlib import Path

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.checkpoint.slices.view import in_parts, sliced
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.models.matformer.files import slice_of
from gemma_edge.converter.models.matformer.pair import large_model, small_model
from gemma_edge.converter.models.matformer.slices import Slice
from gemma_edge.converter.plan.output import format_at
from gemma_edge.converter.plan.plan import MEDIA_PREFIXES
from gemma_edge.converter.verify.errors import VerifyError
from gemma_edge.runtime.formats.model import NamedModel, models_of, open_model


def expected_model(
    source: Checkpoint, bundle: Path, choice: str | Path | None
) -> tuple[Checkpoint, StreamingModel, str | None]:
    """The checkpoint as the bundle's weights are to be read from it, the model, and which of the bundle's that is.

    choice: a slice. Raises SliceError, CheckpointError, VerifyError: a slice that a bundle of two models does not hold;
    and what opening the bundle raises.
    """
    held = models_of(open_model(bundle)) if format_at(bundle).pairs else ()
    if held:
        return _of_two(source, bundle, held, choice)
    if choice is not None:
        source = sliced(source, slice_of(choice))
    model = StreamingModel.open(source)
    _match(source, model.model)
    return source, model, None


def _of_two(
    source: Checkpoint, bundle: Path, held: tuple[NamedModel, ...], choice: str | Path | None
) -> tuple[Checkpoint, StreamingModel, str]:
    large, small = held
    left_out = tuple(layer for layer in large.layers if layer not in small.layers)
    cut = Slice(small.name, small.ffn_widths, left_out)
    whole = large_model(Model.from_json(source.text_config), cut)
    source = in_parts(source, whole)
    _match(source, whole)
    if choice is None:
        return source, StreamingModel(source, whole), large.name
    wanted = slice_of(choice)
    if wanted.kept != cut.kept or wanted.widths(large.ffn_widths) != small.ffn_widths:
        raise VerifyError(
            f"{bundle.name}: holds {large.name} and {small.name}, which is not slice {wanted.name}; give --slice "
            f"{small.name} or its file, or leave it out for {large.name}"
        )
    return source, StreamingModel(source, small_model(whole, cut)), small.name


def _match(source: Checkpoint, model: Model) -> None:
    source.match(model.tensors.values(), (*MEDIA_PREFIXES, *model.config.unused_tensors()))
