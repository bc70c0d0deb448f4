"""What can go wrong while weights are packed for ONNX Runtime."""

import shutil
import signal
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from gemma_edge.converter.convert import convert
from gemma_edge.runtime.executors.litert.weight_cache import WeightCacheError
from gemma_edge.runtime.executors.onnx import packed
from gemma_edge.runtime.executors.onnx.graph import in_whole_lines
from gemma_edge.runtime.executors.onnx.packed import packed_graph
from gemma_edge.runtime.formats.onnx_dir import OnnxDirectory
from tests.converter.verify.wrong import Tensors, rewritten

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, tiny_gemma3: Path) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "model"
    convert("custom-int4", tiny_gemma3, out, format="onnx")
    return out


def test_it_is_made_once_and_found_again(path: Path, tmp_path: Path) -> None:
    first = packed_graph(OnnxDirectory.open(path), tmp_path, 1)
    made = first.stat().st_mtime_ns
    assert packed_graph(OnnxDirectory.open(path), tmp_path, 1) == first
    assert first.stat().st_mtime_ns == made
    assert not list(tmp_path.glob("*.partial"))


def test_a_vocabulary_that_ends_within_a_cache_line(tiny_gemma3: Path, tmp_path: Path) -> None:
    """As that of a fine-tune with one token more; on AVX-512, mapping what followed its scales ended the process."""

    def grown(tensors: Tensors) -> Tensors:
        table = tensors["embed_tokens.weight"]
        return tensors | {"embed_tokens.weight": np.concatenate([table, table[10:11]])}

    checkpoint = rewritten(tiny_gemma3, tmp_path / "checkpoint", grown, vocab_size=2049)
    convert("custom-int4", checkpoint, tmp_path / "out", format="onnx", context=64, measure=False)
    assert packed_graph(OnnxDirectory.open(tmp_path / "out"), tmp_path / "cache", 1).exists()  # it compares logits
    directory = OnnxDirectory.open(tmp_path / "out")
    graph = directory.graphs[directory.decoder]
    scales = graph.graph.initializers["embed_tokens.weight.hadamard.scale"]
    assert scales.shape == (2049, 1)
    in_whole_lines(graph)
    assert scales.shape == (2049 + 63, 1)


def test_other_weights_have_another_name(path: Path, tmp_path: Path) -> None:
    first = packed_graph(OnnxDirectory.open(path), tmp_path, 1)
    other = Path(shutil.copytree(path, tmp_path / "other"))
    (other / "digests.json").unlink()
    data = OnnxDirectory.open(other).decoder_data[0]
    with data.open("r+b") as file:
        file.write(b"\x01")
    assert packed_graph(OnnxDirectory.open(other), tmp_path, 1).parent != first.parent


def test_a_full_disk(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 30, 1 << 30, 1 << 20))
    with pytest.raises(WeightCacheError) as caught:
        packed_graph(OnnxDirectory.open(path), tmp_path, 1)
    assert str(caught.value) == (
        f"the weight cache needs about 3 MiB in {tmp_path}, 1 MiB are free; free some space or choose another cache_dir"
    )


def test_a_folder_that_is_none(path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightCacheError, match=r"cannot write the weight cache in .*; choose another cache_dir"):
        packed_graph(OnnxDirectory.open(path), tmp_path / "file", 1)


def test_a_graph_that_cannot_be_packed(path: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(path, tmp_path / "broken"))
    directory = OnnxDirectory.open(broken)
    (broken / "config.json").unlink()
    with pytest.raises(WeightCacheError) as caught:
        packed_graph(directory, tmp_path / "cache", 1)
    message = str(caught.value)
    assert message.startswith(f"packing the weights of {broken} failed with status 1 (")
    assert "config.json: cannot be read" in message
    assert message.endswith("); convert the checkpoint again")
    assert not list((tmp_path / "cache").glob("*.onnx"))


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (-signal.SIGKILL, "close other programs, it was killed"),
        (-signal.SIGSEGV, "ONNX Runtime crashed on it: copy the directory again, or convert the checkpoint again"),
    ],
)
def test_a_packing_that_is_ended_says_by_what(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, remedy: str
) -> None:
    monkeypatch.setattr(packed, "run_child", lambda *_arguments, **_options: (status, ""))
    with pytest.raises(WeightCacheError) as caught:
        packed_graph(OnnxDirectory.open(path), tmp_path, 1)
    assert str(caught.value).endswith(f"failed with status {int(status)} (no message); {remedy}")
