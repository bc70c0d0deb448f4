"""What `inspect` says of an ONNX directory against what went into it."""

import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from gemma_edge.converter.calibrate.planning import plan_for
from gemma_edge.converter.cli import main
from gemma_edge.converter.convert import convert
from gemma_edge.converter.onnx.inspect import inspect_directory, print_directory
from gemma_edge.converter.plan.target import Target
from gemma_edge.runtime.formats.onnx_digests import OnnxDirectoryError


@pytest.fixture(scope="module")
def path(tiny_gemma3n: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model"
    convert("custom-int4", tiny_gemma3n, path, format="onnx")
    return path


@pytest.fixture(scope="module")
def values(path: Path) -> dict[str, Any]:
    return inspect_directory(path)


def test_files(path: Path, values: dict[str, Any]) -> None:
    assert values["dtype"] == "q4"
    assert values["bytes"] == sum(file["bytes"] for file in values["files"])
    for file in values["files"]:
        content = (path / file["name"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert "onnx/decoder_model_merged_q4.onnx_data" in {file["name"] for file in values["files"]}


def test_graphs(values: dict[str, Any]) -> None:
    decoder, embedder = values["graphs"]
    assert (decoder["file"], embedder["file"]) == ("decoder_model_merged_q4.onnx", "embed_tokens_q4.onnx")
    assert [tensor["name"] for tensor in embedder["inputs"]] == ["input_ids"]
    assert {tensor["name"]: tensor["type"] for tensor in embedder["outputs"]} == {
        "inputs_embeds": "float",
        "per_layer_inputs": "float",
    }
    assert decoder["inputs"][0]["shape"][0] == "batch_size"
    assert "logits" in {tensor["name"] for tensor in decoder["outputs"]}


def test_every_weight_is_listed_with_its_encoding(tiny_gemma3n: Path, values: dict[str, Any]) -> None:
    _, plan = plan_for(Target.parse("custom-int4", format="onnx"), tiny_gemma3n)
    bits = {tensor.spec.name: f"int{tensor.storage.encoding.bits}" for tensor in plan.tensors}
    listed = {
        weight["name"]: weight["encoding"].split("-")[0] for graph in values["graphs"] for weight in graph["weights"]
    }
    quantized = {tensor.spec.name for tensor in plan.tensors if tensor.storage.encoding.kind == "int"}
    assert quantized
    assert {name: listed.get(name) for name in quantized} == {name: bits[name] for name in quantized}


def test_the_command_prints_both(path: Path, values: dict[str, Any]) -> None:
    printed = CliRunner().invoke(main, ["inspect", str(path), "--json"])
    assert json.loads(printed.output) == values
    screen = io.StringIO()
    print_directory(values, Console(file=screen, width=200))
    assert "decoder_model_merged_q4.onnx_data" in screen.getvalue()


def test_names_are_no_markup(values: dict[str, Any]) -> None:
    weight = {"name": "[/b]w", "shape": [1], "encoding": "int4", "file": "[x].onnx_data", "bytes": 1}
    tensor = {"name": "[red]t", "shape": ["[batch]"], "type": "float"}
    graph = {"file": "[y].onnx", "inputs": [tensor], "outputs": [], "weights": [weight]}
    file = {"name": "[z].json", "bytes": 1, "sha256": "0"}
    screen = io.StringIO()
    print_directory(values | {"directory": "[m]", "files": [file], "graphs": [graph]}, Console(file=screen, width=200))
    for name in ("[/b]w", "[x].onnx_data", "[red]t", "['[batch]']", "[y].onnx", "[z].json", "[m]"):
        assert name in screen.getvalue()


def test_a_damaged_encoder_is_named(path: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(path, tmp_path / "model"))
    (copy / "digests.json").unlink()  # which would tell first
    encoder = copy / "onnx" / "vision_encoder_q4.onnx"
    encoder.write_bytes(b"no graph")
    with pytest.raises(OnnxDirectoryError) as caught:
        inspect_directory(copy)
    assert str(caught.value) == f"{encoder}: not an ONNX graph, or damaged; copy the file again"


def test_a_directory_that_is_no_model(tmp_path: Path) -> None:
    printed = CliRunner().invoke(main, ["inspect", str(tmp_path)])
    assert printed.exit_code == 1
    assert "cannot be read" in printed.output
    assert "give the directory of a converted model" in printed.output
