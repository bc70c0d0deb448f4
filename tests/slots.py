"""Slots for tests that need one and no engine. The decoder goes with its slot."""

from pathlib import Path

from gemma_edge.runtime.executors.litert.decoder import DecoderSections, LitertDecoder
from gemma_edge.runtime.executors.litert.slot import LitertSlot
from gemma_edge.runtime.executors.onnx.decoder import OnnxDecoder
from gemma_edge.runtime.executors.onnx.slot import OnnxSlot
from gemma_edge.runtime.formats.onnx_dir import OnnxDirectory


def litert_slot(
    sections: DecoderSections, threads: int, cache_dir: Path | None, context_tokens: int | None = None
) -> LitertSlot:
    return LitertDecoder(sections, threads, cache_dir).new_slot(context_tokens)


def onnx_slot(
    directory: OnnxDirectory, threads: int, cache_dir: Path | None, context_tokens: int | None = None
) -> OnnxSlot:
    return OnnxDecoder(directory, threads, cache_dir).new_slot(context_tokens)
