"""How much memory a run needs, part by part."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One thing that occupies memory.

    `anon_bytes` can only go away by being freed (heap, arenas, KV cache; RssAnon + RssShmem, and GPU memory).
    `file_bytes` are pages of a mapped file that are read for every token, or touched once and not yet dropped: the
    kernel may take them back, and then decode reads them from storage again.
    `source` says where the number comes from: computed from what, or measured where.
    """

    name: str
    anon_bytes: int
    file_bytes: int
    source: str

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a part needs a name")
        if self.anon_bytes < 0 or self.file_bytes < 0:
            raise ValueError(f"{self.name}: bytes cannot be negative ({self.anon_bytes} anon, {self.file_bytes} file)")

    @property
    def total_bytes(self) -> int:
        return self.anon_bytes + self.file_bytes


@dataclass(frozen=True)
class Footprint:
    """All parts that are in memory together at the moment of the peak."""

    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"parts named twice: {', '.join(repeated)}")

    @classmethod
    def of(cls, parts: Iterable[Part]) -> "Footprint":
        """Parts of zero bytes are left out: a text-only model has no row for vision."""
        return cls(tuple(part for part in parts if part.total_bytes))

    @property
    def anon_bytes(self) -> int:
        return sum(part.anon_bytes for part in self.parts)

    @property
    def file_bytes(self) -> int:
        """File-backed and in use. A table of which only single rows are read counts with the pages it touches."""
        return sum(part.file_bytes for part in self.parts)

    @property
    def total_bytes(self) -> int:
        return self.anon_bytes + self.file_bytes
