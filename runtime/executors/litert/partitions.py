"""How a model is divided between XNNPACK and LiteRT's own kernels, as it really runs.

Every border between the two costs a copy and a wait, so each signature should be one XNNPACK partition with only
integer work before it and cache writes after it, and each encoder one as well.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from gemma_edge.runtime.executors.litert.library import CompiledSection, aligned_zeros
from gemma_edge.runtime.formats.file_range import FileRange


@dataclass(frozen=True)
class Partitions:
    """One signature. count: runs of ops that XNNPACK took in a row. outside: the other ops, by name."""

    count: int
    outside: Mapping[str, int]


def partitions(section: FileRange, threads: int, weight_cache: Path | None) -> dict[str, Partitions]:
    """Run every signature once on zeros and look at what ran where, by signature name.

    Without a weight cache the weights are packed into memory, as for any other run.
    """
    names = _names(section, threads, weight_cache)
    return {name: _partitions_of(name, section, threads, weight_cache) for name in names}


def _names(section: FileRange, threads: int, weight_cache: Path | None) -> list[str]:
    model = CompiledSection(section, threads, weight_cache)
    names = list(model.signatures)
    model.close()
    return names


def _partitions_of(name: str, section: FileRange, threads: int, weight_cache: Path | None) -> Partitions:
    """With a model of its own: LiteRT's summary adds up all traces of one model."""
    model = CompiledSection(section, threads, weight_cache, profiling=True)
    try:
        signature = model.signatures[name]
        given = {key: aligned_zeros(tensor) for key, tensor in signature.inputs.items()}
        made = {
            key: given[key] if signature.inputs.get(key) == tensor else aligned_zeros(tensor)  # caches are in place
            for key, tensor in signature.outputs.items()
        }
        ops = model.trace(model.bind(name, given, made))
    finally:
        model.close()
    count = sum(delegated for delegated, _ in groupby(ops, key=lambda op: op[1]))
    return Partitions(count, dict(Counter(op for op, delegated in ops if not delegated)))
