"""Mapped embedding rows against LiteRT running the same section, bit for bit."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from gemma_edge.runtime.executors.base import BundleMismatchError
from gemma_edge.runtime.executors.litert.decoder import DecoderSections
from gemma_edge.runtime.executors.litert.library import CompiledSection, aligned_zeros
from gemma_edge.runtime.executors.litert.tables import EmbeddingTable
from gemma_edge.runtime.formats.file_range import FileRange
from gemma_edge.runtime.formats.litertlm import Bundle

ROWS, WIDTH = 300, 64
TYPES = {
    "int4": schema.TensorType.INT4,
    "int8": schema.TensorType.INT8,
    "fp16": schema.TensorType.FLOAT16,
    "fp32": schema.TensorType.FLOAT32,
}


def table_bytes(encoding: str, rows: int = ROWS) -> bytes:
    generator = np.random.default_rng(7)
    if encoding == "fp32":
        return generator.standard_normal((rows, WIDTH)).astype(np.float32).tobytes()
    if encoding == "fp16":
        return generator.standard_normal((rows, WIDTH)).astype(np.float16).tobytes()
    return generator.integers(0, 256, rows * WIDTH // (2 if encoding == "int4" else 1), np.uint8).tobytes()


def embedder(
    encoding: str,
    data: bytes,
    scales: NDArray[np.float32] | None,
    behind_root: bool = True,
    extra_op: int | None = None,
) -> bytes:
    """A section as the converter writes it: token_ids i32 [1,1] -> EMBEDDING_LOOKUP -> RESHAPE -> f32 [1,1,WIDTH]."""

    def tensor(name: str, shape: list[int], kind: int, buffer: int = 0, quantization: Any = None) -> Any:
        return schema.TensorT(
            name=name.encode(), shape=np.array(shape, np.int32), type=kind, buffer=buffer, quantization=quantization
        )

    def operator(code: int, inputs: list[int], output: int) -> Any:
        return schema.OperatorT(
            opcodeIndex=code, inputs=np.array(inputs, np.int32), outputs=np.array([output], np.int32)
        )

    quantization = None
    if scales is not None:
        quantization = schema.QuantizationParametersT(
            scale=scales, zeroPoint=np.zeros(len(scales), np.int64), quantizedDimension=0
        )
    last = tensor("embeddings", [1, 1, WIDTH], schema.TensorType.FLOAT32)
    shape_1, shape_3 = np.array([1], np.int32), np.array([1, 1, WIDTH], np.int32)
    codes = [schema.BuiltinOperator.EMBEDDING_LOOKUP, schema.BuiltinOperator.RESHAPE]
    graph = schema.SubGraphT(
        tensors=[
            tensor("token_ids", [1, 1], schema.TensorType.INT32),
            tensor("ids", [1], schema.TensorType.INT32),
            tensor("table", [ROWS, WIDTH], TYPES[encoding], 1, quantization),
            tensor("row", [1, WIDTH], schema.TensorType.FLOAT32),
            tensor("shape_1", [1], schema.TensorType.INT32, 2),
            tensor("shape_3", [3], schema.TensorType.INT32, 3),
            last,
        ],
        inputs=np.array([0], np.int32),
        outputs=np.array([6], np.int32),
        operators=[operator(1, [0, 4], 1), operator(0, [1, 2], 3), operator(1, [3, 5], 6)],
    )
    if extra_op is not None:
        codes.append(extra_op)
    buffers = [schema.BufferT() for _ in range(4)]
    buffers[2].data = np.frombuffer(shape_1.tobytes(), np.uint8)
    buffers[3].data = np.frombuffer(shape_3.tobytes(), np.uint8)
    if behind_root:
        buffers[1].offset, buffers[1].size = 1 << 20, len(data)
    else:
        buffers[1].data = np.frombuffer(data, np.uint8)
    model = schema.ModelT(
        version=3,
        operatorCodes=[
            schema.OperatorCodeT(deprecatedBuiltinCode=code, builtinCode=code, version=4 if code == codes[0] else 1)
            for code in codes
        ],
        subgraphs=[graph],
        buffers=buffers,
        signatureDefs=[
            schema.SignatureDefT(
                signatureKey=b"embedder",
                inputs=[schema.TensorMapT(name=b"token_ids", tensorIndex=0)],
                outputs=[schema.TensorMapT(name=b"embeddings", tensorIndex=6)],
            )
        ],
    )
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    root = bytes(builder.Output())
    return root.ljust(1 << 20, b"\0") + data if behind_root else root


def in_bundle(tmp_path: Path, section: bytes) -> FileRange:
    """The section at an offset that is no multiple of the page size: mapping must not depend on it."""
    path = tmp_path / "bundle"
    offset = 3 * 16384 + 64
    path.write_bytes(b"\xff" * offset + section + b"\xff" * 1000)
    return FileRange(path, offset, len(section))


def run_section(place: FileRange, token_id: int, name: str = "embedder") -> NDArray[np.float32]:
    model = CompiledSection(place, 1, None)
    signature = model.signatures[name]
    arrays = {name: aligned_zeros(tensor) for name, tensor in {**signature.inputs, **signature.outputs}.items()}
    arrays["token_ids"][...] = token_id
    model.bind(name, arrays)()
    row: NDArray[np.float32] = arrays["embeddings"].reshape(-1).copy()
    model.close()
    return row


def scales_for(encoding: str) -> NDArray[np.float32] | None:
    if encoding.startswith("fp"):
        return None
    return np.random.default_rng(8).uniform(0.001, 0.1, ROWS).astype(np.float32)


@pytest.mark.parametrize("encoding", ["int4", "int8", "fp32"])
def test_rows_are_bit_equal_to_running_the_section(tmp_path: Path, encoding: str) -> None:
    place = in_bundle(tmp_path, embedder(encoding, table_bytes(encoding), scales_for(encoding)))
    table = EmbeddingTable(place)
    assert (table.rows, table.width) == (ROWS, WIDTH)
    ids = [0, 1, 7, 150, ROWS - 1]
    rows = np.empty((len(ids), WIDTH), np.float32)
    table.lookup(ids, rows)
    for token_id, row in zip(ids, rows, strict=True):
        np.testing.assert_array_equal(row, run_section(place, token_id))


@pytest.mark.parametrize("precision", ["int4", "int8", "fp16"])
def test_rows_of_a_converted_table_are_bit_equal_to_running_its_section(
    precision: str, tiny_bundle: Callable[[str, str], Path]
) -> None:
    """In int4 each layer's part of a row has a scale of its own."""
    place = DecoderSections.of(Bundle.open(tiny_bundle("gemma3n", precision))).per_layer_embedder
    assert place is not None
    table = EmbeddingTable(place)
    ids = [0, 1, 700, table.rows - 1, table.rows]
    rows = np.empty((len(ids), table.width), np.float32)
    table.lookup(ids, rows)
    assert rows[1:4].any(axis=1).all()  # row 0, padding, is zeros
    for token_id, row in zip(ids, rows, strict=True):
        np.testing.assert_array_equal(row, run_section(place, token_id, "per_layer_embedder"))


def test_rows_of_half_floats(tmp_path: Path) -> None:
    data = table_bytes("fp16")
    table = EmbeddingTable(in_bundle(tmp_path, embedder("fp16", data, None)))
    row = np.empty((1, WIDTH), np.float32)
    table.lookup([5], row)
    np.testing.assert_array_equal(row[0], np.frombuffer(data, np.float16).reshape(ROWS, WIDTH)[5].astype(np.float32))


def test_a_table_inside_the_flatbuffer(tmp_path: Path) -> None:
    data = table_bytes("int8")
    place = in_bundle(tmp_path, embedder("int8", data, scales_for("int8"), behind_root=False))
    row = np.empty((1, WIDTH), np.float32)
    EmbeddingTable(place).lookup([9], row)
    np.testing.assert_array_equal(row[0], run_section(place, 9))


def test_ids_outside_the_table_read_row_0(tmp_path: Path) -> None:
    table = EmbeddingTable(in_bundle(tmp_path, embedder("int4", table_bytes("int4"), scales_for("int4"))))
    rows = np.empty((3, WIDTH), np.float32)
    table.lookup([0, ROWS, -3], rows)
    np.testing.assert_array_equal(rows[1], rows[0])
    np.testing.assert_array_equal(rows[2], rows[0])


@pytest.mark.parametrize("extra_op", [schema.BuiltinOperator.TANH, schema.BuiltinOperator.MUL])
def test_a_section_that_computes_more(tmp_path: Path, extra_op: int) -> None:
    """A product too, unless it is one of scales and integers: others' embedders multiply rows by sqrt(D)."""
    section = embedder("fp32", table_bytes("fp32"), None, extra_op=extra_op)
    told = ", ".join(map(str, sorted((7, 22, extra_op))))
    with pytest.raises(BundleMismatchError, match=rf"more than a row look-up \(operators \[{told}\]\); convert"):
        EmbeddingTable(in_bundle(tmp_path, section))


def test_a_table_with_too_few_bytes(tmp_path: Path) -> None:
    section = embedder("int8", table_bytes("int8", ROWS - 1), scales_for("int8"))
    with pytest.raises(BundleMismatchError, match=r"tensor 2 has 19136 bytes, \[300, 64\] needs 19200; copy the"):
        EmbeddingTable(in_bundle(tmp_path, section))


def test_a_section_that_is_cut_short(tmp_path: Path) -> None:
    section = embedder("int8", table_bytes("int8"), scales_for("int8"))[:-10]
    with pytest.raises(BundleMismatchError, match="buffer 1 lies at bytes 1048576 to 1067776 of 1067766; copy the"):
        EmbeddingTable(in_bundle(tmp_path, section))


def test_a_section_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(BundleMismatchError, match="the model at byte 49216 is damaged: begins with b'odel', expected"):
        EmbeddingTable(in_bundle(tmp_path, b"no model" * 100))


@pytest.mark.parametrize("at", [0, 8, 16, 24, 32, 64, 128, 256, 512])
def test_a_section_with_wrong_bytes(tmp_path: Path, at: int) -> None:
    """Whatever is found there, it is a lookup or a typed error."""
    section = bytearray(embedder("int8", table_bytes("int8"), scales_for("int8")))
    section[at : at + 4] = b"\x7f\xff\xee\xdd"
    row = np.empty((1, WIDTH), np.float32)
    with contextlib.suppress(BundleMismatchError):
        EmbeddingTable(in_bundle(tmp_path, bytes(section))).lookup([3], row)


def test_a_corrupt_section_is_named(tmp_path: Path) -> None:
    section = bytearray(embedder("int8", table_bytes("int8"), scales_for("int8")))
    section[:4] = b"\xff\xff\xff\x0f"  # the root lies far behind the end
    with pytest.raises(BundleMismatchError, match="the model at byte 49216 is damaged: Model lies at bytes 268435455"):
        EmbeddingTable(in_bundle(tmp_path, bytes(section)))


def test_a_table_without_a_scale_per_row(tmp_path: Path) -> None:
    section = embedder("int8", table_bytes("int8"), np.ones(1, np.float32))
    with pytest.raises(BundleMismatchError, match="embedding table of 300 rows has 1 scales, expected one per row"):
        EmbeddingTable(in_bundle(tmp_path, section))


def changed(section: bytes, change: Callable[[list[Any]], None]) -> bytes:
    """A section whose tensors are others."""
    model = schema.ModelT.InitFromPackedBuf(section, 0)
    change(model.subgraphs[0].tensors)
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output()).ljust(1 << 20, b"\0") + section[1 << 20 :]


def test_rows_that_share_bytes(tmp_path: Path) -> None:
    """768 rows of 25 int4 values are 9,600 bytes, but no row begins where it should."""
    section = embedder("int4", table_bytes("int4"), np.ones(768, np.float32))
    section = changed(section, lambda tensors: setattr(tensors[2], "shape", np.array([768, 25], np.int32)))
    with pytest.raises(BundleMismatchError, match="table has 9600 bytes, 768 rows of 25 need 9216; convert the"):
        EmbeddingTable(in_bundle(tmp_path, section))


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: setattr(tensors[2], "name", None),
        lambda tensors: setattr(tensors[0], "name", None),
        lambda tensors: setattr(tensors[4], "name", b"table.scale"),  # 4 bytes for 300 rows
    ],
)
def test_a_sound_model_that_is_no_table(tmp_path: Path, change: Callable[[list[Any]], None]) -> None:
    section = changed(embedder("int8", table_bytes("int8"), scales_for("int8")), change)
    with pytest.raises(BundleMismatchError, match=r"the embedder section at 49216 is no table of rows \(.*\); convert"):
        EmbeddingTable(in_bundle(tmp_path, section))


def test_rests_of_another_kind_of_table(tmp_path: Path) -> None:
    section = embedder("int8", table_bytes("int8"), scales_for("int8"))
    section = changed(section, lambda tensors: setattr(tensors[4], "name", b"table.rests"))
    with pytest.raises(BundleMismatchError, match=r"is no table of rows \(rests without int4 in blocks\); convert"):
        EmbeddingTable(in_bundle(tmp_path, section))


def test_a_section_without_a_table(tmp_path: Path) -> None:
    section = changed(
        embedder("fp32", table_bytes("fp32"), None),
        lambda tensors: setattr(tensors[2], "type", schema.TensorType.INT32),
    )
    with pytest.raises(BundleMismatchError, match="found 0 embedding tables of int4, int8, fp16 or fp32, expected 1"):
        EmbeddingTable(in_bundle(tmp_path, section))
