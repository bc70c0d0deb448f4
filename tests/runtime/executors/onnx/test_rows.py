"""Rows read by hand are the rows that the graph gives, bit by bit."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest

from gemma_edge.converter.convert import convert
from gemma_edge.runtime.executors.base import BundleMismatchError
from gemma_edge.runtime.executors.onnx.rows import OnnxTable
from gemma_edge.runtime.formats.onnx_dir import OnnxDirectory

OUTPUTS = ("inputs_embeds", "per_layer_inputs")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_rows_equal_those_of_the_graph(precision: str, tiny_gemma3n: Path, tmp_path: Path) -> None:
    convert(f"custom-{precision}", tiny_gemma3n, tmp_path / "model", format="onnx")
    directory = OnnxDirectory.open(tmp_path / "model")
    path = directory.graph_path("embed_tokens")
    ids = [0, 5, 2047, 2048, 2079, 5]  # the last two lie behind the table of per-layer rows
    expected = onnxruntime.InferenceSession(str(path)).run(OUTPUTS, {"input_ids": np.array([ids])})
    for name, rows in zip(OUTPUTS, expected, strict=True):
        table = OnnxTable(path, directory.graphs["embed_tokens"], name)
        found = np.empty((len(ids), table.width), np.float32)
        table.lookup(ids, found)
        np.testing.assert_array_equal(found, rows.reshape(found.shape))


def in_one_node(path: Path, bits: int) -> tuple[Path, int]:
    """Per-layer embeddings as gemma-edge wrote them once: GatherBlockQuantized on the same bytes; and its columns."""
    model = onnx.ModelProto.FromString(path.read_bytes())
    [scales] = (
        tensor for tensor in model.graph.initializer if tensor.name.startswith("embed_tokens_per_layer.weight.s")
    )
    table = next(tensor for tensor in model.graph.initializer if scales.name == f"{tensor.name}.scale")
    columns = table.dims[1] * 8 // bits
    node = onnx.helper.make_node(
        "GatherBlockQuantized", [table.name, "input_ids", scales.name], ["per_layer_inputs"], domain="com.microsoft",
        bits=bits, block_size=columns // scales.dims[1], gather_axis=0, quantize_axis=1,
    )  # fmt: skip
    output = onnx.helper.make_tensor_value_info("per_layer_inputs", 1, ["B", "T", columns])
    graph = onnx.helper.make_graph([node], "g", model.graph.input, [output], [table, scales])
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    old = path.with_name("old.onnx")
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), old)
    return old, columns


def test_two_bits_are_refused(tiny_gemma3n: Path, tmp_path: Path) -> None:
    convert("custom-int4", tiny_gemma3n, tmp_path / "model", format="onnx")
    old, _ = in_one_node(OnnxDirectory.open(tmp_path / "model").graph_path("embed_tokens"), 2)
    with pytest.raises(BundleMismatchError) as caught:
        OnnxTable(old, onnx_ir.load(old), "per_layer_inputs")
    assert str(caught.value) == (
        f"{old}, per_layer_inputs: a table of 2 bits, expected 4 or 8; convert with another encoding"
    )


@pytest.mark.parametrize(("precision", "bits"), [("int8", 8), ("int4", 4)])
def test_rows_of_a_table_in_one_node(precision: str, bits: int, tiny_gemma3n: Path, tmp_path: Path) -> None:
    convert(f"custom-{precision}", tiny_gemma3n, tmp_path / "model", format="onnx")
    old, columns = in_one_node(OnnxDirectory.open(tmp_path / "model").graph_path("embed_tokens"), bits)
    ids = [0, 5, 2047, 5]
    expected = onnxruntime.InferenceSession(str(old)).run(None, {"input_ids": np.array([ids])})[0][0]
    found = np.empty((len(ids), columns), np.float32)
    OnnxTable(old, onnx_ir.load(old), "per_layer_inputs").lookup(ids, found)
    np.testing.assert_array_equal(found, expected)
