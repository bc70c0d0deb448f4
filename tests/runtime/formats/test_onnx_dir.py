"""What is refused before ONNX Runtime sees it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx_ir
import pytest

from gemma_edge.converter.convert import convert
from gemma_edge.runtime.formats.onnx_digests import OnnxDirectoryError
from gemma_edge.runtime.formats.onnx_dir import OnnxDirectory, is_onnx_directory


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, tiny_gemma3n: Path) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "model"
    convert("custom-int4", tiny_gemma3n, out, context=64, prefill=(16,), format="onnx")
    return out


@pytest.fixture
def directory(converted: Path, tmp_path: Path) -> Path:
    """A copy to damage, without the digests that would tell first: test_onnx_digests.py."""
    copy = Path(shutil.copytree(converted, tmp_path / "model"))
    (copy / "digests.json").unlink()
    return copy


def message(directory: Path) -> str:
    with pytest.raises(OnnxDirectoryError) as caught:
        OnnxDirectory.open(directory)
    return str(caught.value)


def set_config(directory: Path, change: Callable[[dict[str, object]], object]) -> None:
    config = json.loads((directory / "config.json").read_text())
    change(config)
    (directory / "config.json").write_text(json.dumps(config))


def test_a_whole_directory(converted: Path) -> None:
    opened = OnnxDirectory.open(converted)
    assert is_onnx_directory(converted)
    assert (opened.dtype, opened.is_split, opened.decoder) == ("q4", True, "decoder_model_merged")
    assert opened.decoder_data == [converted / "onnx" / "decoder_model_merged_q4.onnx_data"]
    assert opened.metadata().max_num_tokens == 64


def test_truncated_data(directory: Path) -> None:
    data = directory / "onnx" / "embed_tokens_q4.onnx_data"
    needed = data.stat().st_size
    data.write_bytes(data.read_bytes()[:-1])
    assert message(directory) == (
        f"{data}: {needed - 1} bytes, embed_tokens_q4.onnx needs {needed}; copy the file again"
    )
    data.unlink()
    assert message(directory) == f"{data}: 0 bytes, embed_tokens_q4.onnx needs {needed}; copy the file again"


def at(directory: Path, location: str) -> Path:
    """Let a graph's first weight lie elsewhere; the graph."""
    graph = directory / "onnx" / "embed_tokens_q4.onnx"
    proto = onnx_ir.to_proto(onnx_ir.load(graph))
    external = next(tensor for tensor in proto.graph.initializer if tensor.external_data)
    next(entry for entry in external.external_data if entry.key == "location").value = location
    graph.write_bytes(proto.SerializeToString())
    return graph


def test_a_name_that_no_file_can_have(directory: Path) -> None:
    graph, name = at(directory, "a" * 300), "a" * 300
    assert message(directory).startswith(f"{graph.parent / name}: 0 bytes, embed_tokens_q4.onnx needs ")


@pytest.mark.parametrize("location", ["../../secret", "/etc/hostname", "", ".", "two\nlines", "\x1b[2J"])
def test_weights_that_lie_elsewhere(directory: Path, location: str) -> None:
    """A model from the net names its data files; what else is on the disk is none of its business."""
    graph = at(directory, location)
    assert message(directory) == (
        f"{graph}: its weights lie in {location!r}, expected a file name without directories; use another model"
    )


def test_a_damaged_graph(directory: Path) -> None:
    graph = directory / "onnx" / "embed_tokens_q4.onnx"
    graph.write_bytes(graph.read_bytes()[:100])
    assert message(directory) == f"{graph}: not an ONNX graph, or damaged; copy the file again"


@pytest.mark.parametrize(("domain", "version", "shown"), [("", 99, "ai.onnx 99"), ("org.example", 1, "org.example 1")])
def test_another_operator_set(directory: Path, domain: str, version: int, shown: str) -> None:
    graph = directory / "onnx" / "embed_tokens_q4.onnx"
    proto = onnx_ir.to_proto(onnx_ir.load(graph))
    if domain:
        proto.opset_import.add(domain=domain, version=version)
    else:
        next(entry for entry in proto.opset_import if not entry.domain).version = version
    graph.write_bytes(proto.SerializeToString())
    assert message(directory) == (
        f"{graph}: operator set {shown}, expected up to ai.onnx 21, com.microsoft 1; update gemma-edge"
    )


def test_a_wrong_suffix(directory: Path) -> None:
    onnx = directory / "onnx"
    for path in onnx.glob("*_q4*"):
        path.rename(path.with_name(path.name.replace("_q4", "_q3")))
    assert message(directory) == (
        f"{onnx}: expected model_q4.onnx, found ['decoder_model_merged_q3.onnx', 'embed_tokens_q3.onnx']; "
        "the suffix must be that of the dtype in config.json"
    )


def test_another_dtype(directory: Path) -> None:
    set_config(directory, lambda config: config.update({"transformers.js_config": {"dtype": "q3"}}))
    assert message(directory) == (
        f"{directory / 'config.json'}: transformers.js_config.dtype is 'q3', expected one of fp32, fp16, int8, q4; "
        "convert the checkpoint with gemma-edge"
    )


def test_no_configuration(directory: Path) -> None:
    (directory / "config.json").unlink()
    found = message(directory)
    assert found.startswith(f"{directory / 'config.json'}: cannot be read (")
    assert found.endswith("); give the directory of a converted model")


def test_side_files(directory: Path) -> None:
    (directory / "llm_metadata.pb").write_bytes(b"\xff\xff")
    opened = OnnxDirectory.open(directory)
    with pytest.raises(OnnxDirectoryError) as caught:
        opened.metadata()
    assert str(caught.value) == f"{directory / 'llm_metadata.pb'}: damaged; convert the checkpoint again"
    with pytest.raises(OnnxDirectoryError) as caught:
        opened.read("missing")
    assert str(caught.value) == (
        f"{directory / 'missing'}: cannot be read (No such file or directory); convert the checkpoint again"
    )
