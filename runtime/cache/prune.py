"""Clearing up a cache folder: what goes is chosen first, then removed."""

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gemma_edge.runtime.cache.entries import CacheError, Entry, Kind, State
from gemma_edge.runtime.formats.lock import LockHeldError, held


@dataclass(frozen=True)
class Rule:
    """What is to go: all that meets one of these. A rule that says nothing takes nothing.

    unused_since: seconds since 1970; what was used later stays. max_bytes: of all that stays; what was used longest ago
    goes first. gone: what was made from bundles that are gone or were changed. unfinished: what a dead process left.
    """

    unused_since: float | None = None
    max_bytes: int | None = None
    gone: bool = False
    unfinished: bool = True

    def chosen(self, entries: Sequence[Entry]) -> list[Entry]:
        """Those of the entries that go, in their order."""
        going = {entry.name for entry in entries if self._takes(entry)}
        if self.max_bytes is not None:
            left = sum(entry.nbytes for entry in entries if entry.name not in going)
            for entry in sorted(entries, key=lambda entry: entry.used_at):
                if left <= self.max_bytes:
                    break
                if entry.name not in going:
                    going.add(entry.name)
                    left -= entry.nbytes
        return [entry for entry in entries if entry.name in going]

    def _takes(self, entry: Entry) -> bool:
        is_old = self.unused_since is not None and entry.used_at < self.unused_since
        is_orphan = self.gone and entry.state in (State.GONE, State.CHANGED)
        return is_old or is_orphan or (self.unfinished and entry.kind is Kind.PARTIAL)


def remove(folder: Path, entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Remove entries of a cache folder: those that went, and those that stay because they are being written now.

    What a process has mapped stays readable to it. Links are not followed. Raises CacheError: one cannot be removed.
    """
    gone: list[Entry] = []
    busy: list[Entry] = []
    for entry in entries:
        path = Path(entry.name)
        with _opened(folder, path.parent) as descriptor, _unbuilt(folder, entry) as is_free:
            if is_free:
                _remove(path.name, descriptor, folder)
            (gone if is_free else busy).append(entry)
    return gone, busy


@contextlib.contextmanager
def _opened(folder: Path, below: Path) -> Iterator[int]:
    """The descriptor of a folder inside the cache. The cache itself may be a link, what lies in it must not be."""
    descriptors: list[int] = []
    try:
        descriptors.append(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
        for part in below.parts:
            descriptors.append(os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptors[-1]))
    except OSError as error:
        for descriptor in descriptors:
            os.close(descriptor)
        raise CacheError(f"cannot open the cache {folder} ({error.strerror}); name another with --cache-dir") from error
    try:
        yield descriptors[-1]
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _remove(name: str, descriptor: int, folder: Path) -> None:
    try:
        status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            shutil.rmtree(name, dir_fd=descriptor)
        else:
            os.unlink(name, dir_fd=descriptor)
    except FileNotFoundError:
        pass  # somebody else was faster
    except OSError as error:
        raise CacheError(
            f"cannot remove {name} from {folder} ({error.strerror}); run this as the user whose cache it is"
        ) from error


@contextlib.contextmanager
def _unbuilt(folder: Path, entry: Entry) -> Iterator[bool]:
    """Whether nobody is packing it; nobody begins to until the block ends."""
    if entry.kind in (Kind.DIGEST, Kind.CHAT):  # written under another name, and renamed
        yield True
        return
    with contextlib.ExitStack() as stack:
        is_free = False
        with contextlib.suppress(OSError, LockHeldError):
            stack.enter_context(held(folder / f"{entry.name.rpartition('.')[0]}.lock", wait=False))
            is_free = True
        yield is_free
