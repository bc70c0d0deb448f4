"""Headers of safetensors files: every way to be corrupt or truncated is refused with the file's name."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_edge.converter.checkpoint.safetensors_file import CheckpointError, read_header
from tests.converter.checkpoint.checkpoint_files import Header, one_line, two_tensors, write_raw


def changed(**changes: Any) -> Header:
    """`two_tensors` with other facts about the norm."""
    header = two_tensors()
    header["model.norm.weight"] |= changes
    return header


CORRUPT = "corrupt header: "
HEADERS: list[tuple[Header | bytes, str]] = [
    (b'{"model.norm.weight": {"dtype"', CORRUPT + "not JSON ("),
    (b"\xff" * 20, CORRUPT + "not JSON ("),
    (b"[" * 100_000, CORRUPT + "not JSON (maximum recursion depth"),
    (b"[1, 2]", CORRUPT + "a JSON object was expected"),
    (
        json.dumps(two_tensors()).replace("model.norm.weight", "model.embed_tokens.weight").encode(),
        CORRUPT + "'model.embed_tokens.weight' appears twice",
    ),
    ({"model.norm.weight": 3}, CORRUPT + "model.norm.weight has no valid dtype, shape and data_offsets"),
    ({"model.norm.weight": {"dtype": "F32"}}, CORRUPT + "model.norm.weight has no valid dtype, shape"),
    (changed(shape=[-4]), CORRUPT + "model.norm.weight has no valid dtype, shape"),
    (changed(shape=["4"]), CORRUPT + "model.norm.weight has no valid dtype, shape"),
    (changed(shape=[True, 4]), CORRUPT + "model.norm.weight has no valid dtype, shape"),
    (changed(shape=[4.0]), CORRUPT + "model.norm.weight has no valid dtype, shape"),
    (changed(shape=[2**32, 2**32, 2**2]), CORRUPT + "model.norm.weight is F32 [4294967296, 4294967296, 4], of 3 dim"),
    (changed(shape=[10**4000]), CORRUPT + "model.norm.weight is F32 [1000000000"),
    (
        changed(shape=[1] * 17),
        CORRUPT + "model.norm.weight is F32 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], of",
    ),
    (
        changed(shape=[2] * 100_000),
        CORRUPT + "model.norm.weight is F32 [2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]",
    ),
    (changed(shape=[0, 10**4000]), CORRUPT + "model.norm.weight is F32 [0, 1000000000"),
    (changed(data_offsets=[128]), CORRUPT + "model.norm.weight has no valid dtype, shape"),
    (changed(data_offsets=[144, 128]), CORRUPT + "model.norm.weight has no valid dtype, shape"),
    (changed(data_offsets=[-16, 0]), CORRUPT + "model.norm.weight has no valid dtype, shape"),
    (changed(dtype="F4"), "model.norm.weight has dtype 'F4'; expected one of BF16, "),
    (changed(dtype=["F32"]), "model.norm.weight has dtype ['F32']; expected one of BF16, "),
    (changed(shape=[5]), CORRUPT + "model.norm.weight is F32 [5], 20 bytes, but its data_offsets span 16"),
    (changed(dtype="BF16"), CORRUPT + "model.norm.weight is BF16 [4], 8 bytes, but its data_offsets span 16"),
    (
        changed(data_offsets=[120, 136]),
        CORRUPT + "model.embed_tokens.weight and model.norm.weight overlap of 8 bytes",
    ),
    (
        changed(data_offsets=[132, 148]),
        CORRUPT + "model.embed_tokens.weight and model.norm.weight leave a hole of 4 bytes",
    ),
    (
        {"model.norm.weight": two_tensors()["model.norm.weight"]},
        CORRUPT + "model.norm.weight begins 128 bytes behind the header, expected 0",
    ),
]


@pytest.mark.parametrize(("header", "expected"), HEADERS)
def test_corrupt(header: Header | bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_raw(path, header)
    assert one_line(lambda: read_header(path)).startswith(f"{path}: {expected}")


@pytest.mark.parametrize("data_bytes", [0, 127, 128, 143])
def test_truncated_data(data_bytes: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_raw(path, two_tensors())
    whole = path.stat().st_size
    write_raw(path, two_tensors(), bytes(data_bytes))
    assert one_line(lambda: read_header(path)) == (
        f"{path}: truncated: {whole - 144 + data_bytes} bytes, expected {whole} (model.norm.weight ends there); "
        "download it again"
    )


def test_data_behind_the_last_tensor(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_raw(path, two_tensors(), bytes(150))
    assert one_line(lambda: read_header(path)) == (
        f"{path}: 6 bytes behind the last tensor, expected none; download the file again"
    )


@pytest.mark.parametrize("content", [b"", b"\x08\x00\x00"])
def test_shorter_than_any_header(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert one_line(lambda: read_header(path)) == (
        f"{path}: {len(content)} bytes, a safetensors file has at least 8; download it again"
    )


def test_git_lfs_pointer(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n")
    assert one_line(lambda: read_header(path)) == (
        f"{path}: a Git LFS pointer, expected the file it points to; run `git lfs pull`"
    )


@pytest.mark.parametrize("content", [b"\x80\x02}q\x00(X\x05", struct.pack("<Q", 2**60) + b"{}"])
def test_header_longer_than_the_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    message = one_line(lambda: read_header(path))
    assert message.startswith(f"{path}: header length {struct.unpack('<Q', content[:8])[0]} in a file of ")
    assert message.endswith("not a safetensors file, or truncated: download it again")


def test_every_truncation_of_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_raw(path, two_tensors())
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert str(path) in one_line(lambda: read_header(path))


def test_a_damaged_header_opens_or_is_refused_but_never_surprises(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_raw(path, two_tensors())
    content = path.read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(500):
        damaged = bytearray(content)
        for position in random.integers(0, len(content) - 144, size=random.integers(1, 4)):
            damaged[position] = random.integers(0, 256)
        path.write_bytes(damaged)
        try:
            read_header(path)
        except CheckpointError:
            refused += 1
    assert refused > 350
