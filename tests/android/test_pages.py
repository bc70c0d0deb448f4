"""The 16 KiB check of an APK, on libraries that are aligned and on some that are not."""

import struct
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from tools.android.__main__ import main
from tools.android.errors import CompileError


def elf(alignment: int, bits: int = 64) -> bytes:
    """An ELF header with a PT_LOAD segment, and a PT_NOTE that may be aligned as it likes."""
    header = bytearray(64 + 2 * 56)
    header[:5] = b"\x7fELF" + bytes([2 if bits == 64 else 1])
    struct.pack_into("<Q", header, 32, 64)
    struct.pack_into("<HH", header, 54, 56, 2)
    for i, (kind, aligned) in enumerate(((1, alignment), (4, 4))):
        struct.pack_into("<I", header, 64 + 56 * i, kind)
        struct.pack_into("<Q", header, 64 + 56 * i + 48, aligned)
    return bytes(header)


def apk(path: Path, content: bytes, compression: int = zipfile.ZIP_DEFLATED, at: int = 0) -> Path:
    """`at`: where the library's bytes begin, if not at once."""
    name = "lib/arm64-v8a/libx.so"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("classes.dex", elf(1))  # no library
        if at:
            assert archive.fp is not None
            archive.writestr("padding", bytes(at - archive.fp.tell() - 2 * 30 - len("padding") - len(name)))
        archive.writestr(name, content, compression)
    return path


def test_aligned_libraries_pass(tmp_path: Path) -> None:
    cases = {
        "compressed": apk(tmp_path / "a.apk", elf(1 << 14)),
        "more than enough": apk(tmp_path / "b.apk", elf(1 << 16)),
        "32 bits": apk(tmp_path / "c.apk", elf(1 << 12, bits=32)),
        "stored": apk(tmp_path / "d.apk", elf(1 << 14), zipfile.ZIP_STORED, at=1 << 14),
    }
    for path in cases.values():
        done = CliRunner().invoke(main, ["pages", str(path)], catch_exceptions=False)
        assert done.output == f"{path.name}: every 64-bit library is aligned to 16 KiB\n"


def test_what_would_not_load_is_named(tmp_path: Path) -> None:
    path = apk(tmp_path / "a.apk", elf(1 << 12), zipfile.ZIP_STORED, at=1 << 13)
    with pytest.raises(CompileError) as caught:
        CliRunner().invoke(main, ["pages", str(path)], catch_exceptions=False)
    assert str(caught.value).split("; also ") == [
        "lib/arm64-v8a/libx.so: segments aligned to 4096 bytes, expected 16384; rebuild it",
        "lib/arm64-v8a/libx.so: begins at byte 8192, expected a multiple of 16384; zipalign -P 16",
    ]
