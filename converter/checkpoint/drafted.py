"""A checkpoint with that of a drafter beside it: whoever reads a DraftedCheckpoint sees the tensors of both."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint, TensorInfo, Unconverted
from gemma_edge.converter.models.drafter.gemma4 import PREFIX
from gemma_edge.converter.tensors import TensorSpec

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class AssistantCheckpoint(Checkpoint):
    """Its projections lie beside the decoder, not in it: their names have no prefix."""

    def resolve(self, source: str) -> TensorInfo | None:
        """As Checkpoint.resolve."""
        return super().resolve(source) or self.tensors.get(source)


@dataclass(frozen=True)
class DraftedCheckpoint(Checkpoint):
    """whole: the model's, with all that is done to it. drafter: whose source names begin with PREFIX."""

    whole: Checkpoint
    drafter: Checkpoint

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the weights came from, for the report."""
        return self.whole.provenance | {"drafter": self.drafter.provenance}

    @property
    def side_path(self) -> Path:
        """As Checkpoint.side_path, of the model."""
        return self.whole.side_path

    def resolve(self, source: str) -> TensorInfo | None:
        """As Checkpoint.resolve."""
        part, own = self._part(source)
        return part.resolve(own)

    def match(self, specs: Iterable[TensorSpec], ignored: Iterable[str]) -> Unconverted:
        """As Checkpoint.match, of each alone."""
        own: dict[bool, list[TensorSpec]] = {True: [], False: []}
        for spec in specs:
            own[spec.source.startswith(PREFIX)].append(replace(spec, source=spec.source.removeprefix(PREFIX)))
        left = {PREFIX + group: tensors for group, tensors in self.drafter.match(own[True], ()).groups.items()}
        return Unconverted({**self.whole.match(own[False], ignored).groups, **left})

    def read(self, source: str) -> Float32:
        """As Checkpoint.read."""
        part, own = self._part(source)
        return part.read(own)

    def rows(
        self, source: str, chunk_bytes: int = 8 << 20, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, Float32]]:
        """As Checkpoint.rows."""
        part, own = self._part(source)
        return part.rows(own, chunk_bytes, start, stop)

    def integers(self, source: str, start: int, stop: int) -> tuple[NDArray[np.int8], Float32]:
        """As Checkpoint.integers."""
        part, own = self._part(source)
        return part.integers(own, start, stop)

    def input_files(self) -> list[Path]:
        """As Checkpoint.input_files, of both."""
        return [*self.whole.input_files(), *self.drafter.input_files()]

    def sha256(self, on_bytes: Callable[[int], None]) -> dict[str, str]:
        """As Checkpoint.sha256; the drafter's files by "drafter/" and their names."""
        drafter = {f"drafter/{name}": digest for name, digest in self.drafter.sha256(on_bytes).items()}
        return self.whole.sha256(on_bytes) | drafter

    def _part(self, source: str) -> tuple[Checkpoint, str]:
        is_drafter = source.startswith(PREFIX)
        return (self.drafter if is_drafter else self.whole), source.removeprefix(PREFIX)


def drafted(whole: Checkpoint, drafter: Path) -> DraftedCheckpoint:
    """With the drafter in that directory. Raises CheckpointError."""
    opened = AssistantCheckpoint.open(drafter)
    return DraftedCheckpoint(whole.path, whole.config, whole.tensors, whole.prefix, whole, opened, origin=whole.origin)
