"""Which part of an engine uses how much memory."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from gemma_edge.profiles.footprint import Footprint
from gemma_edge.runtime.executors.base import Decoder
from gemma_edge.runtime.kv.slots import SlotPool
from gemma_edge.runtime.memory.reading import MemoryReading, file_mappings, read_memory
from gemma_edge.runtime.memory.watch import LoadMarks


@dataclass(frozen=True)
class EngineMemory:
    """A reading of the process and the engine's parts of it.

    process: anonymous, file-backed and peak memory of the whole process, the Python interpreter included.
    kv_cache_bytes: anonymous memory set aside for keys and values of all slots there are; pages count once they are
        written. snapshot_bytes: copies of rings, by which a conversation goes back to where its last turn began.
    mapped_bytes: resident file-backed bytes by bundle section, and "weight_cache". Of an ONNX directory: by the input
        that a table of rows is for, and "weight_cache", or the decoder's name without one.
    anonymous: where anonymous memory came from, by stage of loading.
    kv_cache_bytes_by_model: where the bundle holds several models, of which one each slot's keys and values are.
    """

    process: MemoryReading
    kv_cache_bytes: int
    snapshot_bytes: int
    mapped_bytes: Mapping[str, int]
    anonymous: Footprint
    kv_cache_bytes_by_model: Mapping[str, int]


def read_engine_memory(decoder: Decoder, pool: SlotPool, marks: LoadMarks) -> EngineMemory:
    """Reads /proc/self; some milliseconds."""
    named = decoder.mapped_ranges().named
    ranges = [(name, replace(part, path=part.path.resolve())) for name, parts in named.items() for part in parts]
    mapped = dict.fromkeys(named, 0)
    for mapping in file_mappings():
        for name, item in ranges:
            # Sections and weights begin on page boundaries, so a mapping belongs to the range it begins in.
            if mapping.path == str(item.path) and item.offset <= mapping.offset_bytes < item.offset + item.nbytes:
                mapped[name] += mapping.resident_bytes
    process = read_memory()
    anonymous = marks.footprint(process.hard_bytes)
    return EngineMemory(process, pool.nbytes, pool.snapshot_bytes, mapped, anonymous, pool.bytes_by_model)
