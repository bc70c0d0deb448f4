"""Every number format of GGUF, read by rows: the values are gguf's own, whichever rows are asked for."""

import importlib.util
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.checkpoint.gguf.file import read_gguf
from gemma_edge.converter.checkpoint.gguf.names import renamed
from gemma_edge.converter.checkpoint.gguf.values import BLOCK_TYPES, TYPES
from tests.converter.checkpoint.checkpoint_files import one_line
from tests.converter.checkpoint.gguf.gguf_files import Float32, Raw, random_blocks
from tools.gguf_writer import write_gguf

ROWS, COLUMNS = 37, 768
SOURCE = "embed_tokens.weight"
FIXTURES = Path(__file__).parents[3] / "fixtures"


def checkpoint(path: Path) -> Checkpoint:
    """Of tensors alone: no model has so few."""
    file = read_gguf(path)
    return Checkpoint(path, {}, renamed([(path, tensor) for tensor in file.tensors.values()], "gemma3"), "model.")


def stored(kind: str, path: Path) -> Float32:
    """Write a table of that type; returns what gguf says it holds."""
    blocks = random_blocks(kind, ROWS * COLUMNS // TYPES[kind].block)
    raw = Raw()
    raw.tensors["token_embd.weight"] = (TYPES[kind].number, (ROWS, COLUMNS), blocks.tobytes())
    raw.write(path)
    [tensor] = gguf.GGUFReader(path).tensors
    values: Float32 = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(ROWS, COLUMNS)
    return values.astype(np.float32)


def test_sizes_and_numbers_are_llama_cpps() -> None:
    for name, kind in TYPES.items():
        qtype = gguf.GGMLQuantizationType[name]
        assert (int(qtype), gguf.GGML_QUANT_SIZES[qtype]) == (kind.number, (kind.block, kind.nbytes))


@pytest.mark.parametrize("kind", TYPES)
def test_any_rows_are_those_of_the_whole(kind: str, tmp_path: Path) -> None:
    expected = stored(kind, tmp_path / "a.gguf")
    source = checkpoint(tmp_path / "a.gguf")
    np.testing.assert_array_equal(source.read(SOURCE), expected)
    assert np.ptp(expected) > 0
    for start, stop in ((0, ROWS), (0, 1), (5, 6), (36, 37), (3, 30), (7, 7)):
        for chunk_bytes in (1, 4000, 8 << 20):
            rows = [(first, rows.copy()) for first, rows in source.rows(SOURCE, chunk_bytes, start, stop)]
            assert [first for first, _ in rows] == list(range(start, stop, max(1, len(rows[0][1])))) if rows else True
            found = np.concatenate([values for _, values in rows]) if rows else np.empty((0, COLUMNS), np.float32)
            np.testing.assert_array_equal(found, expected[start:stop])


@pytest.mark.parametrize("kind", sorted(BLOCK_TYPES))
def test_a_damaged_block(kind: str, tmp_path: Path) -> None:
    stored(kind, tmp_path / "a.gguf")
    tensor = read_gguf(tmp_path / "a.gguf").tensors["token_embd.weight"]
    data = bytearray((tmp_path / "a.gguf").read_bytes())
    data[tensor.offset : tensor.offset + TYPES[kind].nbytes] = b"\xff" * TYPES[kind].nbytes  # a float16 NaN among them
    (tmp_path / "a.gguf").write_bytes(data)
    assert one_line(lambda: checkpoint(tmp_path / "a.gguf").read(SOURCE)) == (
        f"model.{SOURCE}: holds NaN or Inf, expected finite values; the checkpoint is damaged"
    )


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    stored("Q4_0", tmp_path / "a.gguf")
    source = checkpoint(tmp_path / "a.gguf")
    (tmp_path / "a.gguf").write_bytes((tmp_path / "a.gguf").read_bytes()[:-100])
    assert one_line(lambda: source.read(SOURCE)).endswith(
        f"a.gguf: ends inside model.{SOURCE}; it was changed while being read"
    )


@pytest.mark.parametrize("kind", ["Q4_0", "Q6_K", "F16"])
def test_memory_is_that_of_the_chunk(kind: str, tmp_path: Path) -> None:
    """A table of 64 MB as float32, in chunks of 1 MiB of 16-bit values."""
    rows, columns = 16_384, 1024
    block = random_blocks(kind, columns // TYPES[kind].block).tobytes()
    raw = Raw()
    raw.tensors["token_embd.weight"] = (TYPES[kind].number, (rows, columns), block * rows)
    raw.write(tmp_path / "a.gguf")
    source = checkpoint(tmp_path / "a.gguf")
    for _ in source.rows(SOURCE, stop=1):  # what is imported once
        pass
    tracemalloc.start()
    try:
        for _, _values in source.rows(SOURCE, 1 << 20):
            pass
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 12 << 20


def test_without_the_package_a_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(FIXTURES / "tiny-gemma3", path, "Q8_0")
    write_gguf(FIXTURES / "tiny-gemma3", tmp_path / "f16.gguf", "F16")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert one_line(lambda: Checkpoint.open(path)) == (
        f"{path}: reading it needs the package gguf; pip install 'gemma-edge[gguf]'"
    )
    assert Checkpoint.open(tmp_path / "f16.gguf").tensors  # whose numbers need nothing
