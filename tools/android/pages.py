"""Whether an APK's native libraries load on devices with memory pages of 16 KiB.

developer.android.com/guide/practices/page-sizes: every PT_LOAD segment of a 64-bit library is aligned to 16 KiB, and a
library that lies uncompressed in the APK begins at a multiple of that.
"""

import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path

PAGE_BYTES = 16 << 10
_PT_LOAD = 1
_LOCAL_HEADER_BYTES = 30


def misaligned(apk: Path) -> Sequence[str]:
    """A line for each library that would not load; libraries for 32-bit devices do not count."""
    found = []
    with zipfile.ZipFile(apk) as archive, apk.open("rb") as file:
        for entry in archive.infolist():
            if not entry.filename.startswith("lib/") or not entry.filename.endswith(".so"):
                continue
            content = archive.read(entry)
            if content[:5] != b"\x7fELF\x02":  # ELFCLASS64
                continue
            smallest = min(_alignments(content), default=PAGE_BYTES)
            if smallest < PAGE_BYTES:
                found.append(
                    f"{entry.filename}: segments aligned to {smallest} bytes, expected {PAGE_BYTES}; rebuild it"
                )
            if entry.compress_type == zipfile.ZIP_STORED:
                file.seek(entry.header_offset)
                name_bytes, extra_bytes = struct.unpack_from("<HH", file.read(_LOCAL_HEADER_BYTES), 26)
                begin = entry.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
                if begin % PAGE_BYTES:
                    found.append(
                        f"{entry.filename}: begins at byte {begin}, expected a multiple of {PAGE_BYTES}; zipalign -P 16"
                    )
    return found


def _alignments(elf: bytes) -> Sequence[int]:
    """p_align of the PT_LOAD segments of a little-endian 64-bit ELF file."""
    (begin,) = struct.unpack_from("<Q", elf, 32)
    size, count = struct.unpack_from("<HH", elf, 54)
    headers = [begin + size * i for i in range(count)]
    return [
        struct.unpack_from("<Q", elf, at + 48)[0] for at in headers if struct.unpack_from("<I", elf, at)[0] == _PT_LOAD
    ]
