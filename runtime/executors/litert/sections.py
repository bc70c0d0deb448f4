"""Where the models of a bundle lie, and what goes into and comes out of one, read without loading it."""

import mmap
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import TypeVar

from gemma_edge.runtime.executors.base import BundleMismatchError
from gemma_edge.runtime.formats.file_range import FileRange
from gemma_edge.runtime.formats.flatbuffer import FlatbufferError, Table, root_of
from gemma_edge.runtime.formats.litertlm import Bundle, ModelType, SectionKind
from gemma_edge.runtime.formats.tflite_model import check_model
from gemma_edge.runtime.media.encoders import AudioSize, VisionSize
from gemma_edge.runtime.media.mel import BANDS

MASK = "mask"
"""Marks a mask tensor by its name, as LiteRT-LM does."""

Shape = tuple[int, ...]
Countable = TypeVar("Countable", bound=Sized)

_MOST = 100_000  # inputs of a signature, tensors of a graph; E2B has 7,000
_MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class ModelShapes:
    """Of a model's first signature, by name."""

    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]


def section_range(bundle: Bundle, model_type: ModelType) -> FileRange:
    """The bytes of a model. Raises BundleError where the bundle has none of that type."""
    section = bundle.section(SectionKind.TFLITE_MODEL, model_type)
    return FileRange(bundle.path, section.begin, section.nbytes, section.sha256)


def has_model(bundle: Bundle, model_type: ModelType) -> bool:
    """Whether the bundle brings such a model."""
    return bundle.find(SectionKind.TFLITE_MODEL, model_type) is not None


def check_section(section: FileRange) -> None:
    """Raises BundleMismatchError where the section is no sound TFLite model, of which LiteRT might crash."""
    slack = section.offset % mmap.ALLOCATIONGRANULARITY
    with section.path.open("rb") as file:
        length = section.nbytes + slack
        mapped = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=section.offset - slack)
    check_mapped(memoryview(mapped)[slack:], section)


def check_mapped(view: memoryview, section: FileRange) -> None:
    """The same of a section that is mapped."""
    try:
        check_model(view)
    except FlatbufferError as error:
        raise BundleMismatchError(
            f"{section.path}: the model at byte {section.offset} is damaged: {error}; copy the file again, or convert "
            "the model again"
        ) from error


def model_shapes(bundle: Bundle, model_type: ModelType) -> ModelShapes:
    """Raises BundleError where there is no such section, BundleMismatchError where it is not a TFLite model."""
    view = bundle.view(bundle.section(SectionKind.TFLITE_MODEL, model_type))
    try:
        model = root_of(view, "Model")
        signature = model.signature_defs[0]
        graph = model.subgraphs[signature.subgraph_index]
        return ModelShapes(dict(_shapes(graph, signature.inputs)), dict(_shapes(graph, signature.outputs)))
    except Exception as error:  # it is not verified yet: anything may come out of it
        raise BundleMismatchError(
            f"{bundle.path}: its {model_type} section is not a TFLite model with a signature; convert the model again"
        ) from error


def vision_size(bundle: Bundle) -> VisionSize | None:
    """What the vision encoder takes and gives; None without one. Raises BundleMismatchError: not as expected."""
    if not has_model(bundle, ModelType.VISION_ENCODER):
        return None
    images = _features(model_shapes(bundle, ModelType.VISION_ENCODER).inputs)
    rows = _features(model_shapes(bundle, ModelType.VISION_ADAPTER).outputs)
    _check(bundle, len(images) == 4 and images[-1] == 3, ModelType.VISION_ENCODER, images, "[1, height, width, 3]")
    _check(bundle, len(rows) == 3 and rows[1] > 1, ModelType.VISION_ADAPTER, rows, "[1, tokens + 1, width]")
    return VisionSize(images[1], images[2], rows[1] - 1)


def audio_size(bundle: Bundle) -> AudioSize | None:
    """What the audio encoder takes and gives; None without one. Raises BundleMismatchError: not as expected."""
    if not has_model(bundle, ModelType.AUDIO_ENCODER):
        return None
    mel = _features(model_shapes(bundle, ModelType.AUDIO_ENCODER).inputs)
    rows = _features(model_shapes(bundle, ModelType.AUDIO_ADAPTER).outputs)
    _check(bundle, len(mel) == 3 and mel[2] == BANDS, ModelType.AUDIO_ENCODER, mel, f"[1, frames, {BANDS}]")
    _check(bundle, len(rows) == 3, ModelType.AUDIO_ADAPTER, rows, "[1, tokens, width]")
    return AudioSize(tokens=rows[1], frames=mel[1])


def _features(shapes: Mapping[str, Shape]) -> Shape:
    """The tensor that is not a mask."""
    return next((shape for name, shape in shapes.items() if MASK not in name), ())


def _check(bundle: Bundle, is_right: bool, model_type: ModelType, found: Shape, expected: str) -> None:
    if not is_right:
        raise BundleMismatchError(
            f"{bundle.path}: the {model_type} section has a tensor {list(found)}, expected {expected}; "
            "convert the checkpoint with gemma-edge"
        )


def _shapes(graph: Table, entries: Sequence[Table]) -> Iterator[tuple[str, Shape]]:
    for entry in sane(entries):
        yield entry.name.decode(), shape_of(graph.tensors[entry.tensor_index])


def shape_of(tensor: Table) -> Shape:
    """The shape of a tensor. Raises ValueError where it has more dimensions than any."""
    return tuple(sane(tensor.shape, _MOST_DIMENSIONS))


def sane(vector: Countable, most: int = _MOST) -> Countable:
    """A vector that is read before the section is checked. Raises ValueError where its length cannot be true."""
    if len(vector) > most:
        raise ValueError(f"{len(vector)} of what there are at most {most} of")
    return vector
