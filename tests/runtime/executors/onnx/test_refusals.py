"""Graphs that ONNX Runtime cannot load or run are refused in one line."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from gemma_edge.converter.convert import convert
from gemma_edge.runtime.executors.base import BundleMismatchError, ExecutorError
from gemma_edge.runtime.executors.onnx.decoder import OnnxDecoder
from gemma_edge.runtime.formats.onnx_dir import OnnxDirectory


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, tiny_gemma3: Path) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "model"
    convert("custom-int8", tiny_gemma3, out, context=64, format="onnx")
    return out


def changed(converted: Path, tmp_path: Path, change: Callable[[onnx.GraphProto], None]) -> Path:
    """A copy with another graph, without the digests that would tell first."""
    copy = Path(shutil.copytree(converted, tmp_path / "model"))
    (copy / "digests.json").unlink()
    path = copy / "onnx" / "model_int8.onnx"
    model = onnx.ModelProto.FromString(path.read_bytes())
    change(model.graph)
    path.write_bytes(model.SerializeToString())
    return copy


def say(path: Path) -> None:
    OnnxDecoder(OnnxDirectory.open(path), 1, None).new_slot().decode(5)


def rename_an_operator(graph: onnx.GraphProto) -> None:
    next(node for node in graph.node if node.op_type == "Gelu").op_type = "Gemu"


def drop_a_node(graph: onnx.GraphProto) -> None:
    graph.node.remove(next(node for node in graph.node if node.op_type == "Gelu"))


def misplace_weights(graph: onnx.GraphProto) -> None:
    tensor = next(tensor for tensor in graph.initializer if tensor.external_data)
    next(entry for entry in tensor.external_data if entry.key == "length").value = "1"


@pytest.mark.parametrize("change", [rename_an_operator, drop_a_node, misplace_weights])
def test_what_cannot_be_loaded(converted: Path, tmp_path: Path, change: Callable[[onnx.GraphProto], None]) -> None:
    path = changed(converted, tmp_path, change)
    with pytest.raises(ExecutorError) as caught:
        say(path)
    graph = re.escape(str(path / "onnx" / "model_int8.onnx"))
    assert re.fullmatch(
        f"{graph}: ONNX Runtime cannot load it \\(.{{20,300}}\\); convert the checkpoint again", str(caught.value)
    )


def fix_a_length(name: str) -> Callable[[onnx.GraphProto], None]:
    def change(graph: onnx.GraphProto) -> None:
        value = next(value for value in graph.input if value.name == name)
        value.type.tensor_type.shape.dim[-2 if len(value.type.tensor_type.shape.dim) == 4 else 1].dim_value = 3

    return change


@pytest.mark.parametrize("name", ["past_key_values.1.key", "past_key_values.5.value", "position_ids"])
def test_what_cannot_be_run(converted: Path, tmp_path: Path, name: str) -> None:
    path = changed(converted, tmp_path, fix_a_length(name))
    with pytest.raises(ExecutorError) as caught:
        say(path)
    graph = re.escape(str(path / "onnx" / "model_int8.onnx"))
    assert re.fullmatch(
        f"{graph}: ONNX Runtime cannot run it \\(.{{20,300}}\\); convert the checkpoint again", str(caught.value)
    )


@pytest.mark.parametrize("name", ["present.1.value", "logits"])
def test_an_output_of_another_name(converted: Path, tmp_path: Path, name: str) -> None:
    def rename(graph: onnx.GraphProto) -> None:
        next(output for output in graph.output if output.name == name).name = "other"
        for node in graph.node:
            node.output[:] = ["other" if output == name else output for output in node.output]

    path = changed(converted, tmp_path, rename)
    with pytest.raises(BundleMismatchError) as caught:
        say(path)
    assert str(caught.value) == (
        f"{path / 'onnx' / 'model_int8.onnx'}: no outputs ['{name}'], a decoder has logits and one for each cache; "
        "convert the checkpoint with gemma-edge"
    )
