"""Rows read by hand are the rows that the graph gives, bit by bit."""

from pathlib import Path

import numpy as np
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


def test_two_bits_are_refused(tiny_gemma3n: Path, tmp_path: Path) -> None:
    convert("custom-int4", tiny_gemma3n, tmp_path / "model", encoding=["ple=int2"], format="onnx")
    directory = OnnxDirectory.open(tmp_path / "model")
    path = directory.graph_path("embed_tokens")
    with pytest.raises(BundleMismatchError) as caught:
        OnnxTable(path, directory.graphs["embed_tokens"], "per_layer_inputs")
    assert str(caught.value) == (
        f"{path}, per_layer_inputs: a table of 2 bits, expected 4 or 8; convert with another encoding"
    )
