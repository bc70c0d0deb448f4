"""The header of a GGUF file: read as gguf's own reader reads it, and refused in one line where it is damaged."""

import random
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

from gemma_edge.converter.checkpoint.gguf.file import is_gguf, read_gguf
from gemma_edge.converter.convert import lay_out, make_target, plan_for
from gemma_edge.profiles.errors import GemmaEdgeError
from tests.converter.checkpoint.checkpoint_files import one_line
from tests.converter.checkpoint.gguf.gguf_files import Raw, metadata_of, small, string
from tools.gguf_writer import write_gguf

FIXTURES = Path(__file__).parents[3] / "fixtures"


@pytest.mark.parametrize("name", ["tiny-gemma3", "tiny-gemma3n"])
def test_all_is_read_as_ggufs_reader_reads_it(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(FIXTURES / name, path, "Q5_1", embedding_kind="BF16", kept_kind="F16")
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    assert dict(ours.metadata) == metadata_of(path)
    assert [(t.name, t.type, list(t.shape), t.offset, t.nbytes) for t in ours.tensors.values()] == [
        (t.name, t.tensor_type.name, [int(n) for n in reversed(t.shape)], t.data_offset, t.n_bytes)
        for t in theirs.tensors
    ]


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [32, 64])
def test_versions_and_alignments(version: int, alignment: int, tmp_path: Path) -> None:
    raw = small()
    raw.version, raw.alignment = version, alignment
    raw.metadata["general.alignment"] = alignment
    found = read_gguf(raw.write(tmp_path / "a.gguf"))
    assert found.metadata["a.list"] == ["x", "yz"]
    assert [found.metadata[key] for key in ("a.number", "a.share", "a.flag")] == [7, 0.5, True]
    assert {name: tensor.shape for name, tensor in found.tensors.items()} == {
        "token_embd.weight": (4, 32), "output_norm.weight": (3,),
    }  # fmt: skip
    assert all(tensor.offset % alignment == 0 for tensor in found.tensors.values())


def test_a_file_without_tensors(tmp_path: Path) -> None:
    assert not read_gguf(Raw().write(tmp_path / "a.gguf")).tensors


def test_what_is_no_file_is_no_gguf(tmp_path: Path) -> None:
    assert not is_gguf(tmp_path / "absent")
    assert is_gguf(small().write(tmp_path / "weights"))


def _with_pair(pair: bytes) -> Callable[[Raw], object]:
    return lambda raw: raw.pairs.append(pair)


def _with_tensor(number: int, shape: tuple[int, ...], data: bytes = b"") -> Callable[[Raw], object]:
    return lambda raw: raw.tensors.update({"x": (number, shape, data)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: setattr(raw, "version", 1), "GGUF version 1, expected 2 or 3; convert it anew"),
        (lambda raw: setattr(raw, "version", 3 << 24), "a big-endian GGUF file; expected a little-endian one: convert"
         " it with gguf's gguf_convert_endian"),
        (_with_pair(string("a.flag") + struct.pack("<IB", 7, 1)), "corrupt header: 'a.flag' appears twice; download"
         " the file again"),
        (_with_pair(string(b"\xff\xfe") + struct.pack("<IB", 7, 1)), "corrupt header: a key of the metadata is not "
         "UTF-8 (b'\\xff\\xfe'); download the file again"),
        (_with_pair(string("k") + struct.pack("<I", 99)), "corrupt header: k is of the unknown type 99; download the"),
        (_with_pair(string("k") + struct.pack("<IIQ", 9, 8, 1 << 60)), f"corrupt header: k has {1 << 60} elements in"),
        (_with_pair(string("k") + struct.pack("<I", 9) * 9), "corrupt header: k "),
        (_with_pair(string("k") + struct.pack("<IIQ", 9, 4, 1 << 60)), "truncated: "),
        (_with_tensor(0, (1,) * 5, bytes(4)), "corrupt header: x has 5 axes, expected 1 to 4; download the file again"),
        (_with_tensor(0, (), bytes(4)), "corrupt header: x has 0 axes, expected 1 to 4; download the file again"),
        (_with_tensor(0, (0, 3)), "corrupt header: x has the shape [0, 3]; download the file again"),
        (_with_tensor(0, (1 << 50,)), f"corrupt header: x has the shape [{1 << 50}]; download the file again"),
        (_with_tensor(8, (2, 33), bytes(68)), "corrupt header: x has 33 columns, which do not split into Q8_0's blocks "
         "of 32; download the file again"),
        (_with_tensor(23, (2, 256), bytes(272)), "x is of type IQ4_XS (23), expected one of F32, F16, BF16, Q4_0, "
         "Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K; use another quantization of the model"),
        (_with_tensor(4, (2, 32), bytes(64)), "x is of type 4, expected one of F32, F16"),
        (lambda raw: raw.metadata.update({"general.alignment": 33}), "corrupt header: general.alignment is '33', "
         "expected a power of two; download the file again"),
        (lambda raw: raw.metadata.update({"general.alignment": "32"}), "corrupt header: general.alignment is '32', "),
        (lambda raw: raw.offsets.update({"token_embd.weight": 32, "output_norm.weight": 192}), "corrupt header: "
         "token_embd.weight begins 32 bytes behind the header, expected 0; download the file again"),
        (lambda raw: raw.offsets.update({"output_norm.weight": 128}), "corrupt header: output_norm.weight begins -32 "
         "bytes behind the end of token_embd.weight, expected 0; download the file again"),
    ],
)  # fmt: skip
def test_a_header_that_contradicts_itself(change: Callable[[Raw], object], message: str, tmp_path: Path) -> None:
    raw = small()
    change(raw)
    path = raw.write(tmp_path / "a.gguf")
    assert one_line(lambda: read_gguf(path)).startswith(f"{path}: {message}")


def test_a_tensor_that_appears_twice(tmp_path: Path) -> None:
    raw = small()
    raw.tensors["output_norm.weighs"] = raw.tensors["output_norm.weight"]
    path = tmp_path / "a.gguf"
    path.write_bytes(raw.data().replace(b"output_norm.weighs", b"output_norm.weight"))
    assert one_line(lambda: read_gguf(path)) == (
        f"{path}: corrupt header: the tensor 'output_norm.weight' appears twice; download the file again"
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "begins with b'', a GGUF file with b'GGUF'; not a GGUF file: download it again"),
        (b"<!doctype html>", "begins with b'<!do', a GGUF file with b'GGUF'; not a GGUF file: download it again"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, expected what it points to; run `git lfs "
         "pull`"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 40, 0), f"corrupt header: {1 << 40} tensors in a file of 24 bytes; "
         "download the file again"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 40), f"corrupt header: {1 << 40} metadata in a file of 24 bytes; "
         "download the file again"),
        (b"GGUF\3\0", "truncated: 6 bytes, which end inside the version; download it again"),
    ],
)  # fmt: skip
def test_what_is_no_gguf_file(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(data)
    assert one_line(lambda: read_gguf(path)) == f"{path}: {message}"


def test_a_file_that_is_too_long(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(small().data() + bytes(100))
    assert one_line(lambda: read_gguf(path)) == (
        f"{path}: 120 bytes behind the last tensor, expected none; download the file again"
    )


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    assert one_line(lambda: read_gguf(path)) == (
        f"{path}: cannot be read (No such file or directory); check its permissions, and the disk"
    )


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small().write(tmp_path / "a.gguf")
    size = path.stat()
    path.write_bytes(path.read_bytes()[:60])
    monkeypatch.setattr(Path, "stat", lambda self: size)
    message = one_line(lambda: read_gguf(path))
    assert message.startswith(f"{path}: ends inside ")
    assert message.endswith("; it was changed while being read")


def test_every_truncation_is_one_line(tmp_path: Path) -> None:
    data = small().data()
    path = tmp_path / "a.gguf"
    end = len(data) - 20  # of the last tensor; behind it is padding
    for length in range(end):
        path.write_bytes(data[:length])
        one_line(lambda: read_gguf(path))
    path.write_bytes(data[:end])
    assert len(read_gguf(path).tensors) == 2


@pytest.mark.parametrize("name", ["tiny-gemma3", "tiny-gemma3n"])
def test_damage_anywhere_is_one_line_or_none(name: str, tmp_path: Path) -> None:
    """Bytes of a whole model's header changed at random: it is opened, or refused in one line."""
    whole = tmp_path / "whole.gguf"
    write_gguf(FIXTURES / name, whole, "Q4_0")
    data, path, rng = whole.read_bytes(), tmp_path / "a.gguf", random.Random(0)
    header = min(tensor.offset for tensor in read_gguf(whole).tensors.values())
    refused = 0
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 4, 64))):
            damaged[rng.randrange(header)] = rng.randrange(256)
        path.write_bytes(damaged)
        refusal = refusal_of(path)
        refused += refusal is not None
        assert refusal is None or "\n" not in refusal
    assert refused > 10


def refusal_of(path: Path) -> str | None:
    """What planning a conversion says, as far as it gets."""
    try:
        source, plan = plan_for(make_target("custom-int8"), path)
        lay_out(plan, source)
    except GemmaEdgeError as error:
        return str(error)
    return None
