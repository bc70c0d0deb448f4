"""A checkpoint with that of a drafter beside it: whoever reads a DraftedCheckpoint sees the tensors of both."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint, CheckpointError, TensorInfo, Unconverted, reading
from gemma_edge.converter.models.drafter.gemma4 import PREFIX, Drafter
from gemma_edge.converter.tensors import TensorSpec

Float32 = NDArray[np.float32]

_ORDER = "masked_embedding.token_ordering"
_INTEGERS: Final[dict[str, "np.dtype[np.integer[Any]]"]] = {"I64": np.dtype("<i8"), "I32": np.dtype("<i4")}


@dataclass(frozen=True)
class AssistantCheckpoint(Checkpoint):
    """Its projections lie beside the decoder, not in it: their names have no prefix.

    order: ids of all tokens, one cluster after the other; None where it has none.
    """

    order: TensorInfo | None = None

    def resolve(self, source: str) -> TensorInfo | None:
        """As Checkpoint.resolve."""
        return super().resolve(source) or self.tensors.get(source)


@dataclass(frozen=True)
class DraftedCheckpoint(Checkpoint):
    """whole: the model's, with all that is done to it. drafter: whose source names begin with PREFIX."""

    whole: Checkpoint
    drafter: AssistantCheckpoint

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
    tensors = dict(opened.tensors)
    order = tensors.pop(_ORDER, None)
    assistant = AssistantCheckpoint(opened.path, opened.config, tensors, opened.prefix, order)
    return DraftedCheckpoint(
        whole.path, whole.config, whole.tensors, whole.prefix, whole, assistant, origin=whole.origin
    )


def with_order(drafter: Drafter, source: DraftedCheckpoint) -> Drafter:
    """With the order of its tokens, where it goes by clusters. Raises CheckpointError: not every token once."""
    size, stored = drafter.config.vocab_size, source.drafter.order
    if not drafter.config.clusters:
        return drafter
    if stored is None or stored.dtype not in _INTEGERS or stored.shape != (size,):
        found = "nothing" if stored is None else f"{stored.dtype} {list(stored.shape)}"
        raise CheckpointError(
            f"{source.drafter.path}: {_ORDER} is {found}, expected I64 [{size}]; the checkpoint is incomplete, get it "
            "again"
        )
    with reading(stored.file) as file:
        order = np.frombuffer(file.read(stored.offset, stored.nbytes), _INTEGERS[stored.dtype])
    if not np.array_equal(np.sort(order), np.arange(size)):
        raise CheckpointError(
            f"{source.drafter.path}: {_ORDER} does not name each of {size} tokens once; the checkpoint is damaged, get "
            "it again"
        )
    return replace(drafter, order=order.astype(np.int32))
