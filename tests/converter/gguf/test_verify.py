"""`verify` and `inspect` of a GGUF: weights and texts by our reader, and what stays unchecked is named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from gemma_edge.converter.checkpoint.gguf.file import read_gguf
from gemma_edge.converter.cli import main
from gemma_edge.converter.convert import convert
from gemma_edge.converter.verify.errors import VerifyError
from gemma_edge.converter.verify.measure.weights_subject import WeightsSubject
from gemma_edge.converter.verify.verify import verify

FIXTURES = Path(__file__).parents[2] / "fixtures"
SMALL: dict[str, Any] = {"limit": 128, "window": 64}


@pytest.mark.parametrize("name", ["tiny-gemma3", "tiny-gemma3n"])
def test_a_sound_file(name: str, tmp_path: Path) -> None:
    convert("custom-int4", FIXTURES / name, tmp_path / "a.gguf", measure=False)
    report = verify(tmp_path / "a.gguf", FIXTURES / name, **SMALL)
    assert report.passed, report.findings
    assert 1e-5 < report.bundle.metrics["kl"].value < 0.02
    assert {tensor.encoding for tensor in report.tensors} == {"fp32", "int8-b32", "int4-b32"}
    [line] = report.not_checked
    assert line.startswith("not checked: the program that runs this format, its rounding of inputs")
    assert line in json.loads(report.json())["not_checked"]


def test_a_layer_that_is_not_the_checkpoints(tiny_gemma3: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    convert("custom-fp16", tiny_gemma3, path, measure=False)
    tensor = read_gguf(path).tensors["blk.2.ffn_down.weight"]
    values = np.memmap(path, np.float16, "r+", tensor.offset, tensor.shape)
    values[:] = values[::-1].copy()
    values.flush()
    report = verify(path, tiny_gemma3, **SMALL)
    assert [finding.name for finding in report.findings] == ["wrong weights in layer 2"]


def test_what_needs_the_program_that_runs_it(tiny_gemma3: Path, tmp_path: Path) -> None:
    path, prompts = tmp_path / "a.gguf", tmp_path / "prompts.jsonl"
    convert("custom-fp16", tiny_gemma3, path, measure=False)
    prompts.write_text('{"prompt": "Hello", "expect": "Hi"}\n')
    [result] = verify(path, tiny_gemma3, prompts=prompts, **SMALL).tasks
    assert result.complaint is not None
    assert "a.gguf: is not run here, so --prompts has no replies to look at; leave it out" in result.complaint
    subject = WeightsSubject(path, None)
    with pytest.raises(VerifyError) as caught:
        subject.check(2100, 2048)
    assert str(caught.value) == "a.gguf: its context holds 2048 tokens, a window has 2100; give a smaller --window"
    with pytest.raises(VerifyError) as caught:
        subject.check(64, 2080)
    assert str(caught.value) == (
        "a.gguf: a vocabulary of 2048 tokens, the checkpoint has 2080; give the checkpoint that it was converted from"
    )


def test_inspect(tiny_gemma3: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    report = convert("custom-int8", tiny_gemma3, path)
    shown = CliRunner().invoke(main, ["inspect", str(path), "--json"])
    assert shown.exit_code == 0, shown.output
    values = json.loads(shown.stdout)
    assert values["sha256"] == report.values["output"]["sha256"]
    assert values["metadata"]["general.architecture"] == "gemma3"
    assert values["metadata"]["tokenizer.ggml.tokens"] == "2048 values"
    assert values["quality"]["verdict"] == report.values["quality"]["verdict"]
    weights = {weight["name"]: weight for weight in values["weights"]}
    assert weights["blk.0.ffn_up.weight"] | {"offset": 0} == {
        "name": "blk.0.ffn_up.weight", "shape": [512, 128], "type": "Q8_0", "encoding": "int8-b32", "offset": 0,
        "bytes": 512 * 128 // 32 * 34,
    }  # fmt: skip
    shown = CliRunner().invoke(main, ["inspect", str(path)])
    assert shown.exit_code == 0
    assert "blk.5.ffn_down.weight" in shown.stdout
