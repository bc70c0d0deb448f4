"""The door to the formats: a model by its path, whatever it is stored as, and what other models its file holds."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from gemma_edge.profiles.paths import user_path
from gemma_edge.runtime.formats.litertlm import Bundle, BundleError, ModelType, SectionKind
from gemma_edge.runtime.formats.onnx_dir import OnnxDirectory, is_onnx_directory

Model: TypeAlias = Bundle | OnnxDirectory

MODELS_ITEM: Final = "models"
"""Of the decoder's section, where it holds two models that share their weights."""
_MOST_LAYERS: Final = 1000


@dataclass(frozen=True)
class NamedModel:
    """One of the models in a bundle.

    layers: the numbers that its layers have in the large model. ffn_widths: of each of them.
    """

    name: str
    layers: tuple[int, ...]
    ffn_widths: tuple[int, ...]


def open_model(path: Path) -> Model:
    """Raises BundleError, OnnxDirectoryError: neither a bundle nor an ONNX directory, or damaged. PathError."""
    path = user_path(path)
    return OnnxDirectory.open(path) if is_onnx_directory(path) else Bundle.open(path)


def models_text(models: Iterable[NamedModel]) -> str:
    """What `models_of` reads, the large one first."""
    values = {model.name: {"layers": model.layers, "ffn_widths": model.ffn_widths} for model in models}
    return json.dumps(values, separators=(",", ":"))


def models_of(model: Model) -> tuple[NamedModel, ...]:
    """Those of a bundle with more than one, the large one first; none of any other. Raises BundleError: damaged."""
    if not isinstance(model, Bundle):
        return ()
    section = model.find(SectionKind.TFLITE_MODEL, ModelType.PREFILL_DECODE)
    if section is None or MODELS_ITEM not in section.items:
        return ()
    try:
        named = tuple(_named(name, found) for name, found in json.loads(str(section.items[MODELS_ITEM])).items())
        large, small = named
        if large.layers != tuple(range(len(large.layers))):
            raise ValueError("the first is not the whole")
        if not {*small.layers} <= {*large.layers}:
            raise ValueError("layers that the first has not")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise BundleError(
            f"{model.path}: what it says of its models is damaged ({error}); copy the file again"
        ) from error
    return named


def _named(name: str, found: Any) -> NamedModel:
    layers, widths = (tuple(int(number) for number in found[key]) for key in ("layers", "ffn_widths"))
    if not len(layers) == len(widths) <= _MOST_LAYERS or sorted({*layers}) != [*layers]:
        raise ValueError(f"the layers of {name}")
    return NamedModel(name, layers, widths)
