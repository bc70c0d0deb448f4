"""The encoders of a bundle: LiteRT on the sections of vision and audio, where they lie.

Sections and the names of their tensors are LiteRT-LM's (runtime/executor/vision_litert_compiled_model_executor.cc,
audio_litert_compiled_model_executor.cc). A mask is told by its name, as there.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemma_edge.runtime.executors.litert.library import CompiledSection, aligned_zeros
from gemma_edge.runtime.executors.litert.sections import (
    MASK,
    POSITIONS,
    audio_size,
    has_model,
    section_range,
    vision_size,
)
from gemma_edge.runtime.executors.litert.weight_cache import compile_section
from gemma_edge.runtime.formats.file_range import FileRange
from gemma_edge.runtime.formats.litertlm import Bundle, ModelType
from gemma_edge.runtime.media.encoders import Array, AudioSize, PatchesSize, Picture, VisionSize
from gemma_edge.runtime.media.image import Patches


class LitertEncoders:
    """See `Encoders`.

    Args:
        bundle: may have one of the two, or none.
        vision_threads, audio_threads: cores XNNPACK may use.
        cache_dir: where packed weights are kept; None packs them into memory at every load.
    """

    def __init__(self, bundle: Bundle, vision_threads: int, audio_threads: int, cache_dir: Path | None) -> None:
        self._bundle = bundle
        self._threads = {ModelType.VISION_ENCODER: vision_threads, ModelType.VISION_ADAPTER: vision_threads}
        self._audio_threads = audio_threads
        self._cache_dir = cache_dir
        self._loaded: dict[ModelType, _Stage] = {}

    @cached_property
    def vision(self) -> VisionSize | PatchesSize | None:
        return vision_size(self._bundle)

    @cached_property
    def audio(self) -> AudioSize | None:
        return audio_size(self._bundle)

    def encode_image(self, picture: Picture) -> tuple[Array, Array | None]:
        if isinstance(picture, Patches):
            return self._encode_patches(picture), None
        features = self._stage(ModelType.VISION_ENCODER).run(picture)
        rows = _values(self._stage(ModelType.VISION_ADAPTER).run(_values(features)))[0]
        return rows[:-1].copy(), rows[-1:].copy()

    def _encode_patches(self, picture: Patches) -> Array:
        assert isinstance(self.vision, PatchesSize)
        behind = ((0, self.vision.grid.patches - len(picture.values)), (0, 0))
        values, positions = np.pad(picture.values, behind), np.pad(picture.positions, behind, constant_values=-1)
        encoded = self._stage(ModelType.VISION_ENCODER).run(values, **{POSITIONS: positions})
        count = int(_mask(encoded).sum())
        rows: Array = _values(self._stage(ModelType.VISION_ADAPTER).run(_values(encoded)))[0]
        return rows[:count].copy()

    def encode_audio(self, mel: Array) -> Array:
        assert self.audio is not None
        assert self.audio.frames is not None
        padded = np.zeros((1, self.audio.frames, mel.shape[1]), np.float32)
        padded[0, : len(mel)] = mel
        valid = np.arange(self.audio.frames)[None] < len(mel)  # [1, T]
        encoded = self._stage(ModelType.AUDIO_ENCODER).run(padded, **{MASK: valid})
        mask = _mask(encoded)
        rows: Array = _values(self._stage(ModelType.AUDIO_ADAPTER).run(_values(encoded), **{MASK: mask}))[0]
        return rows[: int(mask.sum())].copy() if self.audio.tokens is None else rows.copy()

    def end_of_audio(self) -> Array | None:
        if self.audio is None or self.audio.tokens is None or not has_model(self._bundle, ModelType.END_OF_AUDIO):
            return None
        row: Array = _values(self._stage(ModelType.END_OF_AUDIO).run()).reshape(1, -1)
        return row.copy()

    def release(self) -> None:
        for stage in self._loaded.values():
            stage.close()
        self._loaded.clear()

    def _stage(self, model_type: ModelType) -> "_Stage":
        if model_type not in self._loaded:
            # Only encoders are large; packing an adapter takes less than looking for its cache.
            is_large = model_type in (ModelType.VISION_ENCODER, ModelType.AUDIO_ENCODER)
            threads = self._threads.get(model_type, self._audio_threads)
            section = section_range(self._bundle, model_type)
            cache_dir = self._cache_dir if is_large else None
            self._loaded[model_type] = _Stage(section, threads, cache_dir, self._cache_dir)
        return self._loaded[model_type]


class _Stage:
    """A loaded section with memory for its inputs and outputs."""

    def __init__(self, section: FileRange, threads: int, cache_dir: Path | None, notes: Path | None) -> None:
        self._model: CompiledSection
        self._model, _ = compile_section(section, threads, cache_dir, notes)
        name, signature = next(iter(self._model.signatures.items()))
        self._inputs = {key: aligned_zeros(tensor) for key, tensor in signature.inputs.items()}
        self._outputs = {key: aligned_zeros(tensor) for key, tensor in signature.outputs.items()}
        self._run = self._model.bind(name, self._inputs, self._outputs)

    def run(self, values: Array | None = None, **marked: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        """The outputs by name, valid until the next run. marked: inputs by what their names hold; values: the other."""
        for name, array in self._inputs.items():
            given = next((array for mark, array in marked.items() if mark in name), values)
            if given is not None:
                array[...] = given.reshape(array.shape)
        self._run()
        return self._outputs

    def close(self) -> None:
        self._model.close()


def _mask(outputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """The output that is a mask."""
    return next(value for name, value in outputs.items() if MASK in name)


def _values(outputs: Mapping[str, NDArray[Any]]) -> Array:
    """The output that is not a mask."""
    found: Array = next(value for name, value in outputs.items() if MASK not in name)
    return found
