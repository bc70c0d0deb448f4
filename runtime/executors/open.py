"""The door to the executors: what a model's format is decides here, and nowhere after."""

from pathlib import Path

from gemma_edge.runtime.executors.base import Decoder
from gemma_edge.runtime.executors.litert.decoder import DecoderSections, LitertDecoder
from gemma_edge.runtime.executors.litert.encoders import LitertEncoders
from gemma_edge.runtime.formats.litertlm import Bundle
from gemma_edge.runtime.formats.model import Model
from gemma_edge.runtime.media.encoders import Encoders


def open_decoder(model: Model, threads: int, cache_dir: Path | None) -> Decoder:
    """The decoder of a model, loaded.

    cache_dir: where packed weights are kept; None packs them into memory at every start.

    Raises BundleError, BundleMismatchError: not a decoder that is run here. ExecutorError, WeightCacheError.
    """
    if isinstance(model, Bundle):
        return LitertDecoder(DecoderSections.of(model), threads, cache_dir)
    from gemma_edge.runtime.executors.onnx.decoder import OnnxDecoder  # an extra of its own

    return OnnxDecoder(model, threads, cache_dir)


def open_encoders(model: Model, vision_threads: int, audio_threads: int, cache_dir: Path | None) -> Encoders:
    """Those of a model, each loaded when it is first used."""
    if isinstance(model, Bundle):
        return LitertEncoders(model, vision_threads, audio_threads, cache_dir)
    from gemma_edge.runtime.executors.onnx.encoders import OnnxEncoders

    return OnnxEncoders(model, vision_threads, audio_threads, cache_dir)
