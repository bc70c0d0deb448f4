"""What lies in a cache folder: whose, how large, when it was last used.

Only names that the executors give are looked at; whatever else lies there is none of our business, and links are never
followed. Names and contents are those of executors/litert/weight_cache.py and section_hash.py, executors/onnx/packed.py
and kv/store.py.
"""

import contextlib
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import permutations
from pathlib import Path
from typing import Any

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.executors.onnx.origin import ORIGIN, file_stamps


class CacheError(GemmaEdgeError, OSError):
    """The folder cannot be read, or something in it cannot be removed."""


class Kind(StrEnum):
    """What an entry is."""

    WEIGHTS = "packed weights"  # of a section, for XNNPACK
    GRAPH = "packed graph"  # a folder, for ONNX Runtime
    DIGEST = "digest"  # of a section that was read through
    CHAT = "saved chat"  # of a server
    PARTIAL = "unfinished"  # what a process that died left, or a living one is writing


class State(StrEnum):
    """What became of the bundle that an entry was made from."""

    THERE = ""
    CHANGED = "changed"
    GONE = "gone"
    UNKNOWN = "not known"


_MOST_SECTIONS = 12  # of a bundle
CHATS = "chats"  # a folder of a folder for each model
_SHA, _VERSION, _CPU = r"[0-9a-f]{64}", r"[^/]+", r"\w+-[0-9a-f]{8}"
_NAMES = {
    Kind.WEIGHTS: re.compile(rf"({_SHA})\.{_VERSION}\.{_CPU}\.xnnpack"),
    Kind.GRAPH: re.compile(rf"({_SHA})\.{_VERSION}\.{_CPU}\.onnx"),
    Kind.DIGEST: re.compile(r"([0-9a-f]{32})\.json"),
    Kind.CHAT: re.compile(rf"{CHATS}/([0-9a-f]{{32}})/[0-9a-f]{{32}}-\d+\.kv"),
    Kind.PARTIAL: re.compile(rf"({_SHA})\.{_VERSION}\.{_CPU}\.partial"),
}
_SHAPES = {  # a link is none of these
    Kind.WEIGHTS: (stat.S_ISREG,),
    Kind.GRAPH: (stat.S_ISDIR,),
    Kind.DIGEST: (stat.S_ISREG,),
    Kind.CHAT: (stat.S_ISREG,),
    Kind.PARTIAL: (stat.S_ISREG, stat.S_ISDIR),
}


@dataclass(frozen=True)
class Entry:
    """One file or folder of the cache.

    bundle: what it was made from; None where no digest says so. nbytes: on the disk. used_at: seconds since 1970, as
    the file system notes it, which on most is right to a day.
    """

    name: str
    kind: Kind
    bundle: Path | None
    state: State
    nbytes: int
    used_at: float


@dataclass(frozen=True)
class _Note:
    """Which bytes of which file have a digest."""

    identity: tuple[Any, ...]
    sha256: str

    @property
    def path(self) -> Path:
        return Path(self.identity[0])

    @property
    def state(self) -> State:
        try:
            status = self.path.stat()
        except OSError:
            return State.GONE
        now = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return State.THERE if now == self.identity[1:6] else State.CHANGED


def entries(folder: Path) -> list[Entry]:
    """What lies in a cache folder, largest first; nothing where there is none. Raises CacheError: it cannot be read."""
    try:
        found = list(_scanned(folder, ""))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CacheError(f"cannot read the cache {folder} ({error.strerror}); name another with --cache-dir") from error
    notes = {name: note for name, _ in found if (note := _note(folder / name)) is not None}
    whose = _bundles_by_digest(notes.values())
    listed = []
    for name, status in found:
        kind, key = _kind(name, status.st_mode)
        if kind is None:
            continue
        if kind is Kind.GRAPH:
            bundle, state = _origin(folder / name)
        elif (note := notes.get(name)) is not None:
            bundle, state = note.path, note.state
        else:
            bundle, state = whose.get(key, (None, State.UNKNOWN))
        nbytes, used_at = _size(folder / name, status)
        listed.append(Entry(name, kind, bundle, state, nbytes, used_at))
    return sorted(listed, key=lambda entry: (-entry.nbytes, entry.name))


def _scanned(folder: Path, below: str) -> Iterator[tuple[str, os.stat_result]]:
    """Names, as paths below `folder`, and what they are: of the folder itself, and of those that hold chats."""
    with os.scandir(folder / below) as items:
        for item in items:
            name, status = f"{below}{item.name}", item.stat(follow_symlinks=False)
            is_chats = stat.S_ISDIR(status.st_mode) and (name == CHATS or below == f"{CHATS}/")
            if is_chats:
                yield from _scanned(folder, f"{name}/")
            else:
                yield name, status


def _kind(name: str, mode: int) -> tuple[Kind | None, str]:
    """What a name says, and the digest in it. None: not ours, or a link."""
    for kind, pattern in _NAMES.items():
        found = pattern.fullmatch(name)
        if found and any(is_it(mode) for is_it in _SHAPES[kind]):
            return kind, found[1]
    return None, ""


def _note(path: Path) -> _Note | None:
    if not _NAMES[Kind.DIGEST].fullmatch(path.name):
        return None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        content = _json(path)
        note = _Note(tuple(content["identity"]), str(content["sha256"]))
        return note if len(note.identity) == 8 and isinstance(note.identity[0], str) else None
    return None


def _json(path: Path) -> Any:
    """Of a file and of nothing else: no link is followed, no pipe waited for. Raises OSError, ValueError."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), encoding="utf-8") as file:
        return json.load(file)


def _bundles_by_digest(notes: Iterable[_Note]) -> Mapping[str, tuple[Path, State]]:
    """Of each digest in a name, a section's or a model's: the bundle, preferably one that is still there."""
    found: dict[str, tuple[Path, State]] = {}
    of_bundle: dict[tuple[Any, ...], list[_Note]] = {}
    for note in notes:
        if found.get(note.sha256, (None, None))[1] is not State.THERE:
            found[note.sha256] = (note.path, note.state)
        of_bundle.setdefault(note.identity[:6], []).append(note)
    for same in of_bundle.values():
        digests = [note.sha256 for note in same[:_MOST_SECTIONS]]
        for some in (*permutations(digests, 2), *permutations(digests, 3)):  # of a decoder and its tables, in order
            found.setdefault(hashlib.sha256("".join(some).encode()).hexdigest()[:32], (same[0].path, same[0].state))
    return found


def _origin(folder: Path) -> tuple[Path | None, State]:
    """Of a packed graph: the directory that it says it was made from."""
    try:
        origin = _json(folder / ORIGIN)
        directory, files = Path(origin["path"]), dict(origin["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, State.UNKNOWN
    if not directory.exists():
        return directory, State.GONE
    return directory, State.THERE if files == file_stamps(directory, list(files)) else State.CHANGED


def _size(path: Path, status: os.stat_result) -> tuple[int, float]:
    """Bytes on the disk, and when it was last read or written."""
    if not stat.S_ISDIR(status.st_mode):
        return status.st_blocks * 512, max(status.st_atime, status.st_mtime)
    inside = [file.lstat() for file in path.rglob("*")]
    used_at = max((max(each.st_atime, each.st_mtime) for each in inside), default=status.st_mtime)
    return sum(each.st_blocks * 512 for each in inside), used_at
