"""How much memory a conversion takes at most, known before it starts, and the budget that all share.

A conversion holds what its threads work on (quantize/stream.py), what is measured beside it (quality/measure.py) and
the moments of one input where it is calibrated (calibrate/): all bounded by sizes in config.json. What a bound is
multiplied with was fitted to peaks of RSS, and FARM.md says to which. Page cache is the system's: activations of a
calibration lie in files.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Condition
from typing import Final

from gemma_edge.converter.batch.joblist import BatchError, Job
from gemma_edge.converter.calibrate.step import activation_bytes_per_token
from gemma_edge.converter.checkpoint.checkpoint import read_config
from gemma_edge.converter.checkpoint.processor import media_settings
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.quality.measure import extent_of
from gemma_edge.converter.quality.tap import HELD_BYTES
from gemma_edge.converter.quantize.stream import CHUNK_BYTES, THREADS
from gemma_edge.converter.tensors import Role
from gemma_edge.profiles.sizes import MIB, format_bytes

PROCESS_BYTES: Final = 128 * MIB
"""Python with numpy and what an emitter imports; also what the one takes that watches over the jobs."""
_STREAMED: Final = 14
"""Bytes for a byte that a thread has read: float32, folded, rounded, and buffers of the search for a scale."""
_TOKENIZER: Final = 5
"""Bytes for a byte of tokenizer.json, parsed."""
_ACTIVATIONS: Final = 1.5
"""Of the values that both runs hold inside a layer: attention and what an op works in."""
_LOGITS: Final = 6
"""Copies of a block of the vocabulary's logits: both runs', and what their difference is computed in."""
_MOMENTS: Final = 8
"""Copies of the moments of a layer's input, and of the matrix that is rounded for them."""


def planned_bytes(job: Job, checkpoint: Path) -> int:
    """What the job may take, in bytes of RSS without page cache. checkpoint: a directory, or a GGUF.

    Raises what reading a config.json raises.
    """
    if job.memory_bytes is not None:
        return job.memory_bytes
    model = Model.of_checkpoint(read_config(checkpoint), media_settings(checkpoint))
    needed = PROCESS_BYTES + _TOKENIZER * _tokenizer_bytes(checkpoint) + _streamed_bytes(model)
    if job.request["measure"] or job.request["recipe"] == "auto":
        needed += _measured_bytes(model)
    if job.request["calibrate"] is not None:
        needed += _calibrated_bytes(model)
    return needed


def _tokenizer_bytes(checkpoint: Path) -> int:
    """Of a GGUF it is written in passing, and about as long as all else that comes before its weights."""
    path = checkpoint / "tokenizer.json"
    return path.stat().st_size if path.is_file() else 0


def _matrices(model: Model) -> list[tuple[int, int]]:
    """[rows, columns] of all."""
    return [(spec.shape[0], math.prod(spec.shape[1:])) for spec in model.tensors.values() if len(spec.shape) > 1]


def _streamed_bytes(model: Model) -> int:
    largest = max(2 * rows * columns for rows, columns in _matrices(model))
    return _STREAMED * THREADS * min(CHUNK_BYTES, largest)


def _measured_bytes(model: Model) -> int:
    config, tokens = model.config, extent_of(model).tokens
    head_rows = min(config.vocab_size, 2 * CHUNK_BYTES // (2 * config.width))
    held = min(HELD_BYTES, 8 * sum(rows * columns for rows, columns in _matrices(model)))
    activations = round(_ACTIVATIONS * tokens * activation_bytes_per_token(model))
    return held + activations + _LOGITS * 4 * tokens * head_rows


def _calibrated_bytes(model: Model) -> int:
    linear = [s.shape for s in model.tensors.values() if len(s.shape) == 2 and s.role not in (Role.EMBEDDING, Role.PLE)]
    columns = max(shape[1] for shape in linear)
    largest = max(shape[0] * shape[1] for shape in linear if shape[0] < model.config.vocab_size)
    return _MOMENTS * 4 * max(columns * columns, largest)


@dataclass
class Budget:
    """Memory that several threads take from, each in its turn: a large job is not passed by small ones for ever."""

    total_bytes: int
    _taken_bytes: int = 0
    _next: int = 0
    _turn: int = 0
    _changed: Condition = field(default_factory=Condition)

    @contextmanager
    def take(self, nbytes: int) -> Iterator[None]:
        """Wait for so much, and have it until the block ends. Raises BatchError where it is more than there is."""
        if nbytes > self.total_bytes:
            raise BatchError(
                f"needs {format_bytes(nbytes)} of memory, {format_bytes(self.total_bytes)} are left for jobs; "
                "raise --memory, or say in the list what it really needs"
            )
        with self._changed:
            ticket = self._next
            self._next += 1
            self._changed.wait_for(lambda: self._turn == ticket and self._taken_bytes + nbytes <= self.total_bytes)
            self._turn += 1
            self._taken_bytes += nbytes
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._taken_bytes -= nbytes
                self._changed.notify_all()
