"""Chats on disk: slots that were saved when they were given up, and are found again by their tokens.

A folder for each decoder, named by its digest, so that no model reads another's. The oldest go where they would take
more than they may. A file whose tokens another one continues is taken away.
"""

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.executors.base import SlotState
from gemma_edge.runtime.kv.prefix import common_prefix
from gemma_edge.runtime.kv.saved import opened_state, save_state

_log = logging.getLogger(__name__)

LEAST_TOKENS = 32
"""Fewer are run again sooner than they are read."""
_SUFFIX = ".kv"


@dataclass(frozen=True)
class Saved:
    """A chat in a file. mark: a position that can be gone back to, as can every one from `earliest` on."""

    path: Path
    token_ids: tuple[int, ...]
    earliest: int
    mark: int
    nbytes: int

    def reach(self, wanted: Sequence[int]) -> int:
        """How many of these tokens a slot has that is filled from it."""
        shared = common_prefix(self.token_ids, wanted)
        if self.earliest <= shared:
            return shared
        return self.mark if self.mark <= shared else 0


class FolderStore:
    """See above. For one thread at a time.

    Args:
        folder: of all models. It is made with the first chat.
        digest: the decoder's.
        most_bytes: of this model's chats together.
    """

    def __init__(self, folder: Path, digest: str, most_bytes: int) -> None:
        self._folder = folder / digest[:32]
        self._digest = digest
        self._most_bytes = most_bytes
        self._saved: dict[Path, Saved] = {}  # the one used last at the end
        for path in sorted(self._folder.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime_ns):
            self._read(path)

    def of(self, digest: str) -> "FolderStore":
        """The same for another model."""
        return FolderStore(self._folder.parent, digest, self._most_bytes)

    def __len__(self) -> int:
        return len(self._saved)

    @property
    def nbytes(self) -> int:
        """What the files take."""
        return sum(saved.nbytes for saved in self._saved.values())

    def put(self, state: SlotState, earliest_rewind: int) -> bool:
        """Keep it, if it is worth it; whether it is kept now. earliest_rewind: the slot's."""
        token_ids = state.token_ids
        if len(token_ids) < LEAST_TOKENS:
            return False
        path = self._folder / f"{_name(token_ids)}-{earliest_rewind}{_SUFFIX}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            save_state(state, self._digest, path)
            nbytes = path.stat().st_size
        except (GemmaEdgeError, OSError) as error:
            _log.warning("a chat of %d tokens was not saved: %s", len(token_ids), error)
            return False
        self._saved.pop(path, None)
        for other in list(self._saved.values()):
            if common_prefix(other.token_ids, token_ids) == len(other.token_ids):
                self.drop(other)
        mark = len(token_ids) if state.mark is None else len(state.mark.token_ids)
        self._saved[path] = Saved(path, token_ids, earliest_rewind, mark, nbytes)
        for other in list(self._saved.values()):
            if self.nbytes <= self._most_bytes:
                break
            self.drop(other)
        return path in self._saved

    def best(self, wanted: Sequence[int], least: int) -> Saved | None:
        """What has the longest beginning of these tokens, at least so many."""
        found = max(self._saved.values(), key=lambda saved: saved.reach(wanted), default=None)
        return None if found is None or found.reach(wanted) < max(least, LEAST_TOKENS) else found

    @contextmanager
    def opened(self, saved: Saved) -> Iterator[SlotState]:
        """What was saved, while the file is open. Raises SavedCacheError."""
        with opened_state(saved.path, self._digest) as state:
            yield state
        self._saved[saved.path] = self._saved.pop(saved.path)
        with suppress(OSError):
            os.utime(saved.path)

    def drop(self, saved: Saved) -> None:
        """Remove it."""
        self._saved.pop(saved.path, None)
        with suppress(OSError):
            saved.path.unlink()

    def _read(self, path: Path) -> None:
        try:
            earliest = int(path.stem.rpartition("-")[2])
            with opened_state(path, self._digest) as state:
                mark = len(state.token_ids) if state.mark is None else len(state.mark.token_ids)
                self._saved[path] = Saved(path, state.token_ids, earliest, mark, path.stat().st_size)
        except (GemmaEdgeError, ValueError) as error:
            _log.warning("%s; it is removed", error)
            with suppress(OSError):
                path.unlink()


def _name(token_ids: Sequence[int]) -> str:
    digest = hashlib.sha256()
    for token_id in token_ids:
        digest.update(f"{int(token_id)} {getattr(token_id, 'origin', '')}\n".encode())
    return digest.hexdigest()[:32]
