"""Where a conversion writes: outputs with odd names, outputs that are inputs, a kernel that writes in small pieces."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from gemma_edge.converter.convert import convert
from gemma_edge.runtime.formats.atomic import OutputError

SMALL: dict[str, Any] = {"context": 256, "prefill": (8, 32)}


def test_the_directory_that_one_stands_in(tiny_gemma3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its report lies beside it, as that of any other directory."""
    out = tmp_path / "model"
    out.mkdir()
    monkeypatch.chdir(out)
    convert("custom-int8", tiny_gemma3, ".", format="onnx", **SMALL)
    assert (out / "config.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.json"]


@pytest.mark.parametrize(("out_format", "expected"), [("litertlm", "a file"), ("onnx", "an empty directory")])
@pytest.mark.parametrize("out", [".", "..", "/"])
def test_directories_that_are_in_use(
    out: str, out_format: str, expected: str, tiny_gemma3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "inside"
    (inside / "file").mkdir(parents=True)
    monkeypatch.chdir(inside)
    with pytest.raises(OutputError, match=f"exists and is not {expected}; "):
        convert("custom-int8", tiny_gemma3, out, format=out_format, **SMALL)
    assert list(tmp_path.rglob("*")) == [inside, inside / "file"]


@pytest.mark.parametrize(
    ("out_format", "out", "replaced"),
    [
        ("litertlm", "model.safetensors", "model.safetensors"),
        ("litertlm", "config", "config.json"),
        ("onnx", "tokenizer", "tokenizer.json"),
    ],
)
def test_no_file_of_the_checkpoint_is_replaced(
    out_format: str, out: str, replaced: str, tiny_gemma3: Path, tmp_path: Path
) -> None:
    checkpoint = Path(shutil.copytree(tiny_gemma3, tmp_path / "checkpoint"))
    before = {path: path.read_bytes() for path in checkpoint.iterdir()}
    with pytest.raises(OutputError) as caught:
        convert("custom-int8", checkpoint, checkpoint / out, format=out_format, **SMALL)
    assert str(caught.value) == (
        f"{checkpoint / replaced}: is part of the checkpoint that is converted; choose another output"
    )
    assert {path: path.read_bytes() for path in checkpoint.iterdir()} == before


def test_a_kernel_that_writes_less_than_it_is_asked_to(
    tiny_gemma3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does where the disk is about to be full: the rest is asked for again, and finds out."""
    whole, in_pieces = tmp_path / "whole.litertlm", tmp_path / "pieces.litertlm"
    convert("custom-int8", tiny_gemma3, whole, **SMALL)
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, memoryview(data)[:1000], offset))
    convert("custom-int8", tiny_gemma3, in_pieces, **SMALL)
    assert in_pieces.read_bytes() == whole.read_bytes()
