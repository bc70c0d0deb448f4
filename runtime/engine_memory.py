"""Which part of an engine uses how much memory."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gemma_edge.profiles.footprint import Footprint
from gemma_edge.runtime.executors.litert.decoder import LitertExecutor
from gemma_edge.runtime.formats.file_range import FileRange
from gemma_edge.runtime.formats.litertlm import Bundle
from gemma_edge.runtime.formats.onnx_dir import OnnxDirectory
from gemma_edge.runtime.memory.reading import MemoryReading, file_mappings, read_memory
from gemma_edge.runtime.memory.watch import LoadMarks

if TYPE_CHECKING:
    from gemma_edge.runtime.executors.onnx.decoder import OnnxExecutor

WEIGHT_CACHE = "weight_cache"


@dataclass(frozen=True)
class EngineMemory:
    """A reading of the process and the engine's parts of it.

    process: anonymous, file-backed and peak memory of the whole process, the Python interpreter included.
    kv_cache_bytes: anonymous memory set aside for keys and values; pages count once they are written.
    mapped_bytes: resident file-backed bytes by bundle section, and "weight_cache". Of an ONNX directory: by the input
        that a table of rows is for, and "weight_cache", or the decoder's name without one.
    anonymous: where anonymous memory came from, by stage of loading.
    """

    process: MemoryReading
    kv_cache_bytes: int
    mapped_bytes: Mapping[str, int]
    anonymous: Footprint


def read_engine_memory(
    bundle: Bundle | OnnxDirectory, executor: "LitertExecutor | OnnxExecutor", marks: LoadMarks
) -> EngineMemory:
    """Reads /proc/self; some milliseconds."""
    ranges = _ranges(bundle, executor)
    mapped = dict.fromkeys((name for name, _ in ranges), 0)
    for mapping in file_mappings():
        for name, item in ranges:
            # Sections and weights begin on page boundaries, so a mapping belongs to the range it begins in.
            if mapping.path == str(item.path) and item.offset <= mapping.offset_bytes < item.offset + item.nbytes:
                mapped[name] += mapping.resident_bytes
    process = read_memory()
    return EngineMemory(process, executor.kv_cache_bytes, mapped, marks.footprint(process.hard_bytes))


def _ranges(bundle: Bundle | OnnxDirectory, executor: "LitertExecutor | OnnxExecutor") -> list[tuple[str, FileRange]]:
    """What is told apart, by name: sections, tables of an ONNX embedder, and the decoder's weights where they lie."""
    cache = executor.weight_cache_path
    ranges = []
    if isinstance(bundle, Bundle):
        ranges += [(it.name, FileRange(bundle.path, it.begin, it.nbytes)) for it in bundle.sections]
        ranges += [] if cache is None else [(WEIGHT_CACHE, FileRange(cache, 0, sys.maxsize))]
    elif not isinstance(executor, LitertExecutor):
        ranges += [(name, part) for name, parts in executor.row_tables.items() for part in parts]
        ranges += [(bundle.decoder if cache is None else WEIGHT_CACHE, part) for part in executor.weights]
    return [(name, replace(item, path=item.path.resolve())) for name, item in ranges]
