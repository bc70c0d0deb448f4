"""The MediaPipe LLM bundle (.task): reader and writer.

A ZIP archive of stored entries, aligned so that a reader can map them in place (github.com/google-ai-edge/mediapipe,
tasks/python/genai/bundler and tasks/python/metadata/metadata_writers/model_asset_bundle_utils.py, which align to 4
bytes; whole pages here). The gap before an entry's header holds zeros: only the central directory says where entries
are. All places follow from the sizes, so that weights can stream into them; the checksums, which no reader of models
verifies but every unzip does, come last, from the bytes as they lie in the file.
"""

import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gemma_edge.profiles.errors import GemmaEdgeError

ALIGNMENT_BYTES = 4096
PREFILL_DECODE, EMBEDDER, PER_LAYER_EMBEDDER = (
    "TF_LITE_PREFILL_DECODE",
    "TF_LITE_EMBEDDER",
    "TF_LITE_PER_LAYER_EMBEDDER",
)
TOKENIZER, METADATA = "TOKENIZER_MODEL", "METADATA"  # a SentencePiece model; an LlmParameters proto

# APPNOTE.TXT 4.3 (pkware.com). No flags, stored, 1980-01-01 00:00: the same inputs give the same bytes.
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
_VERSION, _VERSION64, _STORED, _TIME, _DATE = 20, 45, 0, 0, 0x21
_LIMIT = 0xFFFFFFFF  # in a 32-bit field: the value is in the zip64 extra field


class TaskError(GemmaEdgeError):
    """The file is not a .task bundle, or lacks an entry."""


@dataclass(frozen=True)
class Entry:
    """A file in the archive; its bytes lie at begin to end, uncompressed."""

    name: str
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


# ---------------------------------------------------------------- writer


@dataclass(frozen=True)
class TaskLayout:
    """Where everything will be. Write the entries' bytes in their places, then call `finish`."""

    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, sizes: Mapping[str, int]) -> "TaskLayout":
        """Places entries in the order given; sizes in bytes by name."""
        entries: list[Entry] = []
        offset = 0
        for name, nbytes in sizes.items():
            begin = -(-(offset + len(_local_header(name, nbytes, 0))) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
            entries.append(Entry(name, begin, begin + nbytes))
            offset = begin + nbytes
        return cls(tuple(entries))

    @property
    def nbytes(self) -> int:
        """Size of the finished file."""
        return self._directory_begin + len(self._directory([0] * len(self.entries)))

    def finish(self, file: BinaryIO) -> None:
        """Writes all headers around the entries, which must be in place; reads the whole file once for checksums."""
        checksums = []
        for entry in self.entries:
            checksum = _crc32(file, entry)
            header = _local_header(entry.name, entry.nbytes, checksum)
            file.seek(entry.begin - len(header))
            file.write(header)
            checksums.append(checksum)
        file.seek(self._directory_begin)
        file.write(self._directory(checksums))

    @property
    def _directory_begin(self) -> int:
        return self.entries[-1].end

    def _directory(self, checksums: list[int]) -> bytes:
        records = b"".join(map(_central_header, self.entries, checksums))
        begin, count = self._directory_begin, len(self.entries)
        end = begin + len(records)
        if begin >= _LIMIT:
            end64 = (b"PK\x06\x06", _END64.size - 12, _VERSION64, _VERSION64, 0, 0, count, count, len(records), begin)
            records += _END64.pack(*end64) + _LOCATOR64.pack(b"PK\x06\x07", 0, end, 1)
        size = end - begin
        return records + _END.pack(b"PK\x05\x06", 0, 0, count, count, size, min(begin, _LIMIT), 0)


def _local_header(name: str, nbytes: int, checksum: int) -> bytes:
    large = nbytes >= _LIMIT
    extra = struct.pack("<2H2Q", 1, 16, nbytes, nbytes) if large else b""
    size, version = min(nbytes, _LIMIT), _VERSION64 if large else _VERSION
    fields = (b"PK\x03\x04", version, 0, _STORED, _TIME, _DATE, checksum, size, size, len(name), len(extra))
    return _LOCAL.pack(*fields) + name.encode("ascii") + extra


def _central_header(entry: Entry, checksum: int) -> bytes:
    header_begin = entry.begin - len(_local_header(entry.name, entry.nbytes, checksum))
    wide = [value for value in (entry.nbytes, entry.nbytes, header_begin) if value >= _LIMIT]
    extra = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
    size, version = min(entry.nbytes, _LIMIT), _VERSION64 if wide else _VERSION
    start = (b"PK\x01\x02", version, version, 0, _STORED, _TIME, _DATE, checksum, size, size)
    return (
        _CENTRAL.pack(*start, len(entry.name), len(extra), 0, 0, 0, 0, min(header_begin, _LIMIT))
        + entry.name.encode("ascii")
        + extra
    )


def _crc32(file: BinaryIO, entry: Entry) -> int:
    file.seek(entry.begin)
    checksum, remaining_bytes = 0, entry.nbytes
    while remaining_bytes:
        chunk = file.read(min(remaining_bytes, 1 << 20))
        if not chunk:
            raise ValueError(f"entry {entry.name}: {remaining_bytes} of {entry.nbytes} bytes were not written")
        checksum = zlib.crc32(chunk, checksum)
        remaining_bytes -= len(chunk)
    return checksum


# ---------------------------------------------------------------- reader


@dataclass(frozen=True)
class Task:
    """A .task bundle on disk. Holds no file open."""

    path: Path
    entries: tuple[Entry, ...]

    @classmethod
    def open(cls, path: Path) -> "Task":
        """Reads the directory. Raises TaskError: no such file, not a ZIP archive, compressed entries."""
        path = Path(path)
        try:
            with path.open("rb") as file, zipfile.ZipFile(file) as archive:
                entries = tuple(_locate(path, file, info) for info in archive.infolist())
        except OSError as error:
            raise TaskError(f"{path}: cannot read ({error.strerror}); check the path") from error
        except (zipfile.BadZipFile, struct.error, NotImplementedError, ValueError) as error:  # the last two: zipfile's
            raise TaskError(f"{path}: not a .task bundle ({error}); copy the file again") from error
        return cls(path, entries)

    def read(self, name: str) -> bytes:
        """An entry's bytes. Raises TaskError where there is none of that name."""
        for entry in self.entries:
            if entry.name == name:
                with self.path.open("rb") as file:
                    file.seek(entry.begin)
                    return file.read(entry.nbytes)
        names = ", ".join(entry.name for entry in self.entries)
        raise TaskError(f"{self.path}: has no entry {name}, only {names}; convert the model again")


def _locate(path: Path, file: BinaryIO, info: zipfile.ZipInfo) -> Entry:
    if info.compress_type != zipfile.ZIP_STORED:
        raise TaskError(f"{path}: entry {info.filename} is compressed, expected stored; convert the model again")
    file.seek(info.header_offset)
    *_, name_bytes, extra_bytes = _LOCAL.unpack(file.read(_LOCAL.size))
    begin = info.header_offset + _LOCAL.size + name_bytes + extra_bytes
    end, nbytes = begin + info.file_size, file.seek(0, 2)
    if end > nbytes:
        raise TaskError(f"{path}: entry {info.filename} ends at byte {end} of {nbytes}; copy the file again")
    return Entry(info.filename, begin, end)
