"""Where the models of a bundle lie, and what goes into and comes out of one, read without loading it."""

import mmap
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from math import isqrt
from typing import TypeVar

from gemma_edge.runtime.executors.base import BundleMismatchError
from gemma_edge.runtime.formats.file_range import FileRange
from gemma_edge.runtime.formats.flatbuffer import FlatbufferError, Table, root_of
from gemma_edge.runtime.formats.litertlm import Bundle, ModelType, SectionKind
from gemma_edge.runtime.formats.tflite_model import check_model
from gemma_edge.runtime.media.encoders import FRAMES_PER_TOKEN, AudioSize, PatchesSize, VisionSize
from gemma_edge.runtime.media.image import PatchGrid
from gemma_edge.runtime.media.mel import BANDS

MASK = "mask"
"""Marks a mask tensor by its name, as LiteRT-LM does."""
POSITIONS = "positions"
"""And those of the places of patches."""

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


def vision_size(bundle: Bundle) -> VisionSize | PatchesSize | None:
    """What the vision encoder takes and gives; None without one. Raises BundleMismatchError: not as expected."""
    if not has_model(bundle, ModelType.VISION_ENCODER):
        return None
    images = _features(model_shapes(bundle, ModelType.VISION_ENCODER).inputs)
    rows = _features(model_shapes(bundle, ModelType.VISION_ADAPTER).outputs)
    if len(images) == 3:
        return PatchesSize(_grid(bundle, images, rows))
    _check(bundle, len(images) == 4 and images[-1] == 3, ModelType.VISION_ENCODER, images, "[1, height, width, 3]")
    _check(bundle, len(rows) == 3 and rows[1] > 1, ModelType.VISION_ADAPTER, rows, "[1, tokens + 1, width]")
    return VisionSize(images[1], images[2], rows[1] - 1)


def _grid(bundle: Bundle, images: Shape, rows: Shape) -> PatchGrid:
    """From [1, patches, values of each] and [1, tokens, width]: what follows from both being squares."""
    pooled = images[1] // rows[1] if len(rows) == 3 and rows[1] else 0
    side, pool = isqrt(images[2] // 3), isqrt(pooled)
    is_right = pool > 0 and (images[1], images[2]) == (pool**2 * rows[1], 3 * side**2)
    _check(bundle, is_right, ModelType.VISION_ENCODER, images, "[1, patches, 3 * side * side], a square for each token")
    return PatchGrid(images[1], side, pool)


def audio_size(bundle: Bundle) -> AudioSize | None:
    """What the audio encoder takes and gives; None without one. Raises BundleMismatchError: not as expected."""
    if not has_model(bundle, ModelType.AUDIO_ENCODER):
        return None
    mel = _features(model_shapes(bundle, ModelType.AUDIO_ENCODER).inputs)
    rows = _features(model_shapes(bundle, ModelType.AUDIO_ADAPTER).outputs)
    _check(bundle, len(mel) == 3 and mel[2] == BANDS, ModelType.AUDIO_ENCODER, mel, f"[1, frames, {BANDS}]")
    _check(bundle, len(rows) == 3, ModelType.AUDIO_ADAPTER, rows, "[1, tokens, width]")
    is_dense = mel[1] == FRAMES_PER_TOKEN * rows[1]  # of Gemma 3n, 16
    return AudioSize(tokens=None if is_dense else rows[1], frames=mel[1])


def _features(shapes: Mapping[str, Shape]) -> Shape:
    """The tensor that is neither a mask nor says where patches lie."""
    return next((shape for name, shape in shapes.items() if MASK not in name and POSITIONS not in name), ())


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
