"""Files of an ONNX directory that are not what was converted are named, when they are read."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from gemma_edge.converter.convert import convert
from gemma_edge.runtime.formats.onnx_digests import Digests, OnnxDirectoryError
from gemma_edge.runtime.formats.onnx_dir import OnnxDirectory


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, tiny_gemma3n: Path) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "model"
    convert("custom-int4", tiny_gemma3n, out, context=64, prefill=(16,), format="onnx")
    return out


@pytest.fixture
def directory(converted: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(converted, tmp_path / "model"))


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_what_is_listed(converted: Path) -> None:
    recorded = Digests.read(converted).recorded
    assert recorded is not None
    assert recorded == {
        name: hashlib.sha256((converted / name).read_bytes()).hexdigest()
        for name in (
            "onnx/embed_tokens_q4.onnx", "onnx/embed_tokens_q4.onnx_data", "onnx/decoder_model_merged_q4.onnx",
            "onnx/decoder_model_merged_q4.onnx_data", "tokenizer.model", "llm_metadata.pb",
        )
    }  # fmt: skip


@pytest.mark.parametrize("name", ["onnx/embed_tokens_q4.onnx", "onnx/decoder_model_merged_q4.onnx"])
def test_a_changed_graph(directory: Path, name: str) -> None:
    before = hashlib.sha256((directory / name).read_bytes()).hexdigest()
    flip(directory / name, -1)
    after = hashlib.sha256((directory / name).read_bytes()).hexdigest()
    with pytest.raises(OnnxDirectoryError) as caught:
        OnnxDirectory.open(directory)
    assert str(caught.value) == (
        f"{directory / name}: SHA-256 {after[:16]}..., digests.json records {before[:16]}...; copy the file again"
    )


@pytest.mark.parametrize("name", ["tokenizer.model", "llm_metadata.pb"])
def test_a_changed_file_beside_the_graphs(directory: Path, name: str) -> None:
    flip(directory / name, 20)
    opened = OnnxDirectory.open(directory)
    with pytest.raises(OnnxDirectoryError, match=rf"{name}: SHA-256 .*, digests.json records .*; copy the file again"):
        opened.read(name)


def test_a_file_that_is_not_listed(directory: Path) -> None:
    shutil.copy(directory / "onnx" / "embed_tokens_q4.onnx", directory / "onnx" / "vision_encoder_q4.onnx")
    with pytest.raises(OnnxDirectoryError) as caught:
        OnnxDirectory.open(directory).encoder("vision_encoder")
    assert str(caught.value) == (
        f"{directory / 'onnx' / 'vision_encoder_q4.onnx'}: not listed in digests.json; convert the checkpoint again"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "cannot be read (no JSON); copy the file again"),
        ("\udcff", "cannot be read (no JSON); copy the file again"),
        ("[" * 100_000, "cannot be read (no JSON); copy the file again"),
        ("[]", "not a list of SHA-256 digests by file name; copy the file again"),
        ("{}", "not a list of SHA-256 digests by file name; copy the file again"),
        (json.dumps({"sha256": ["a"]}), "not a list of SHA-256 digests by file name; copy the file again"),
        (json.dumps({"sha256": {"a": "A" * 64}}), "not a list of SHA-256 digests by file name; copy the file again"),
        (json.dumps({"sha256": {"a": 5}}), "not a list of SHA-256 digests by file name; copy the file again"),
    ],
)
def test_damaged_digests(directory: Path, content: str, reason: str) -> None:
    path = directory / "digests.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(OnnxDirectoryError) as caught:
        OnnxDirectory.open(directory)
    assert str(caught.value) == f"{path}: {reason}"


def test_digests_that_cannot_be_read(directory: Path) -> None:
    path = directory / "digests.json"
    path.unlink()
    path.mkdir()
    with pytest.raises(OnnxDirectoryError) as caught:
        OnnxDirectory.open(directory)
    assert str(caught.value) == f"{path}: cannot be read (Is a directory); copy the file again"
