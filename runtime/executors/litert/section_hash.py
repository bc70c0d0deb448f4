"""The SHA-256 of a section: computed once, remembered while the file stays the same, compared with the bundle's own.

A bundle's table records the digest of each section. LiteRT does not notice every flipped byte in a decoder: it may
compute nonsense, or crash. So no section is used before its bytes have been read through once; later starts find a
note.
"""

import hashlib
import json
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from gemma_edge.runtime.formats.file_range import FileRange
from gemma_edge.runtime.formats.litertlm import BundleError
from gemma_edge.runtime.packing.folder import CacheFolder, CacheFolderError, own_folder

_RACY_NS = 2_000_000_000  # a file changed this recently may change again within one clock tick
_CHUNK_BYTES = 1 << 20


def section_sha256(section: FileRange, notes: CacheFolder | Path | None) -> str:
    """The hex digest of a section's bytes. `notes` is a cache folder; None, or one that cannot be written to, remembers
    nothing.

    Raises BundleError where the bundle records another digest.
    """
    status = section.path.stat()
    identity: list[str | int] = [
        str(section.path.resolve()), status.st_dev, status.st_ino, status.st_size,
        status.st_mtime_ns, status.st_ctime_ns, section.offset, section.nbytes,
    ]  # fmt: skip
    name = hashlib.sha256(json.dumps([identity[0], *identity[6:]]).encode()).hexdigest()[:32]
    with ExitStack() as stack:
        folder = _opened(notes, stack)
        digest = None if folder is None else _remembered(folder, f"{name}.json", identity)
        if digest is None:
            digest = _sha256(section)
            settled = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _RACY_NS
            if folder is not None and settled:
                _remember(folder, name, json.dumps({"identity": identity, "sha256": digest}))
    if section.sha256 not in (None, digest):
        raise BundleError(
            f"{section.path}: the section at byte {section.offset} has SHA-256 {digest[:16]}..., the table records "
            f"{str(section.sha256)[:16]}...; copy the file again"
        )
    return digest


def _opened(notes: CacheFolder | Path | None, stack: ExitStack) -> CacheFolder | None:
    if notes is None or isinstance(notes, CacheFolder):
        return notes
    with suppress(OSError, CacheFolderError):
        return stack.enter_context(own_folder(notes))
    return None


def _remembered(folder: CacheFolder, name: str, identity: list[str | int]) -> str | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        note = folder.own(name)
        content = {} if note is None else json.loads(note.read_text())
        if content["identity"] == identity:
            return str(content["sha256"])
    return None


def _remember(folder: CacheFolder, name: str, content: str) -> None:
    with suppress(OSError), folder.locked(f"{name}.lock"):  # packed weights that are there are used all the same
        folder.remove(f"{name}.partial")
        (folder.anchor / f"{name}.partial").write_text(content)
        folder.put(f"{name}.partial", f"{name}.json")


def _sha256(section: FileRange) -> str:
    digest = hashlib.sha256()
    left = section.nbytes
    with section.path.open("rb", buffering=0) as file:
        file.seek(section.offset)
        while left and (data := file.read(min(left, _CHUNK_BYTES))):
            digest.update(data)
            left -= len(data)
    return digest.hexdigest()
