"""The encoders of an ONNX directory: ONNX Runtime on `vision_encoder` and `audio_encoder`.

Names and shapes are transformers.js's: pixel_values [n, 3, H, W] -> image_features [n, tokens, D]; input_features
[n, frames, 128], input_features_mask [n, frames] -> audio_features [n, tokens, D]. Gemma 4's are pixel_values
[n, patches, values], pixel_position_ids [n, patches, 2] -> image_features [tokens, D], and audio_features [tokens, D],
of all inputs one after the other. The rows that end an image or a recording lie in the embedder's table.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from gemma_edge.runtime.executors.base import BundleMismatchError, ExecutorError
from gemma_edge.runtime.executors.onnx.data import check_data, with_real_files
from gemma_edge.runtime.executors.onnx.slot import LONGEST_REASON
from gemma_edge.runtime.formats.onnx_dir import AUDIO_ENCODER, VISION_ENCODER, OnnxDirectory
from gemma_edge.runtime.media.encoders import Array, AudioSize, PatchesSize, Picture, VisionSize
from gemma_edge.runtime.media.image import Patches, PatchGrid


class OnnxEncoders:
    """See `Encoders`.

    Args:
        directory: may have one of the two, or none.
        vision_threads, audio_threads: cores ONNX Runtime may use.
        notes: where it is remembered that weights are those that were converted; None remembers nothing.
    """

    def __init__(
        self, directory: OnnxDirectory, vision_threads: int, audio_threads: int, notes: Path | None = None
    ) -> None:
        self._directory = directory
        self._notes = notes
        self._threads = {VISION_ENCODER: vision_threads, AUDIO_ENCODER: audio_threads}
        self._loaded: dict[str, onnxruntime.InferenceSession] = {}

    @cached_property
    def vision(self) -> VisionSize | PatchesSize | None:
        shapes = self._shapes(VISION_ENCODER, "pixel_values", "image_features")
        if shapes is None:
            return None
        if len(shapes[0]) == 3:
            return PatchesSize(self._grid())
        (_, _, height, width), (_, tokens, _) = shapes
        if not all(isinstance(size, int) for size in (height, width, tokens)):
            raise self._mismatch(VISION_ENCODER, "sizes of image and features that are not fixed")
        return VisionSize(height, width, tokens)

    @cached_property
    def audio(self) -> AudioSize | None:
        shapes = self._shapes(AUDIO_ENCODER, "input_features", "audio_features")
        if shapes is None:
            return None
        if len(shapes[1]) == 2:
            return AudioSize(tokens=None, frames=None)
        (_, frames, _), (_, tokens, _) = shapes
        if not isinstance(tokens, int):
            raise self._mismatch(AUDIO_ENCODER, "a number of features that is not fixed")
        return AudioSize(tokens, frames if isinstance(frames, int) else None)

    def _grid(self) -> PatchGrid:
        """How images are cut, which the graph leaves open."""
        said = self._directory.metadata().llm_model_type.gemma4
        if not (said.max_num_patches and said.patch_width and said.pooling_kernel_size):
            raise self._mismatch(VISION_ENCODER, "patches as an input, and the metadata does not say how many")
        return PatchGrid(said.max_num_patches, said.patch_width, said.pooling_kernel_size)

    def _shapes(self, model: str, given: str, made: str) -> tuple[Any, Any] | None:
        """Shapes of an input and an output, sizes that are not fixed as text. Reads the graph, no weight."""
        graph = self._directory.encoder(model)
        if graph is None:
            return None
        shapes = {value.name: value.shape for value in (*graph.graph.inputs, *graph.graph.outputs)}
        taken, returned = shapes.get(given), shapes.get(made)
        if taken is None or returned is None:
            raise self._mismatch(model, f"inputs and outputs {sorted(map(str, shapes))}")
        return tuple(taken), tuple(returned)

    def _mismatch(self, model: str, found: str) -> BundleMismatchError:
        return BundleMismatchError(
            f"{self._directory.graph_path(model)}: has {found}; convert the checkpoint with gemma-edge"
        )

    def encode_image(self, picture: Picture) -> tuple[Array, Array | None]:
        if isinstance(picture, Patches):
            positions = picture.positions[None].astype(np.int64)
            inputs = {"pixel_values": picture.values[None], "pixel_position_ids": positions}
        else:
            inputs = {"pixel_values": np.ascontiguousarray(picture.transpose(0, 3, 1, 2))}  # -> [1, 3, H, W]
        return self._run(VISION_ENCODER, "image_features", inputs), None

    def encode_audio(self, mel: Array) -> Array:
        valid = np.ones((1, len(mel)), np.bool_)
        return self._run(AUDIO_ENCODER, "audio_features", {"input_features": mel[None], "input_features_mask": valid})

    def end_of_audio(self) -> Array | None:
        return None

    def _run(self, model: str, output: str, inputs: dict[str, Any]) -> Array:
        if model not in self._loaded:
            self._loaded[model] = self._load(model)
        [rows] = self._loaded[model].run([output], inputs)
        found: Array = rows.reshape(-1, rows.shape[-1]).astype(np.float32)
        return found

    def _load(self, model: str) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads[model]
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = self._directory.graph_path(model)
        graph = self._directory.encoder(model)
        assert graph is not None  # its shapes were asked for first
        check_data(self._directory, graph, self._notes)
        content, folder = with_real_files(graph, path.parent)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        try:
            return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's classes share no base
            reason = " ".join(str(error).split())[:LONGEST_REASON]
            raise ExecutorError(
                f"{path}: ONNX Runtime cannot load it ({reason}); convert the checkpoint again"
            ) from error

    def release(self) -> None:
        self._loaded.clear()
