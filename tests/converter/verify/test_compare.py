"""`gemma-edge compare` of what our runtime does not run beside what it does."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from gemma_edge.converter.cli import main
from gemma_edge.converter.convert import convert

FIXTURES = Path(__file__).parents[2] / "fixtures"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights in int8 as four formats have them, and a text."""
    work = tmp_path_factory.mktemp("models")
    text = (FIXTURES / "calibration.txt").read_text("utf-8")[:400]
    (work / "text.txt").write_text(text, "utf-8")
    for out in ("a.litertlm", "a.gguf"):
        convert("custom-int8", FIXTURES / "tiny-gemma3", work / out, context=192, measure=False)
    for out in ("onnx", "compressed-tensors"):
        convert("custom-int8", FIXTURES / "tiny-gemma3", work / out, format=out, context=192, measure=False)
    return work


@pytest.mark.parametrize(("a", "b"), [("a.gguf", "a.litertlm"), ("onnx", "compressed-tensors")])
def test_all_formats_are_compared(a: str, b: str, models: Path) -> None:
    arguments = ["compare", str(models / a), str(models / b), "--text", str(models / "text.txt")]
    arguments += ["--limit", "48", "--window", "24", "--greedy", "8", "--threads", "1", "--cache-dir", str(models)]
    done = CliRunner().invoke(main, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout)
    assert 0 < values["distance"]["kl_ab"] < 0.005
    assert values["distance"]["tokens"] == 48
    assert values["greedy_same_tokens"] >= 4
    speeds = {name: values[side]["decode_tokens_per_s"] for name, side in ((a, "a"), (b, "b"))}
    assert [name for name, speed in speeds.items() if not speed] == [
        name for name in (a, b) if name in ("a.gguf", "compressed-tensors")
    ]


def test_a_table_and_a_damaged_file(models: Path, tmp_path: Path) -> None:
    arguments = ["--text", str(models / "text.txt"), "--limit", "8", "--window", "8", "--greedy", "2"]
    done = CliRunner().invoke(main, ["compare", str(models / "a.gguf"), str(models / "a.gguf"), *arguments])
    assert done.exit_code == 0, done.output
    assert "KL(A || B), KL(B || A)   0.000000, 0.000000 nats" in done.stdout
    assert done.stdout.splitlines()[-1].split() == ["decoding", *["not", "run", "here"], *["not", "run", "here"]]
    (tmp_path / "b.gguf").write_bytes((models / "a.gguf").read_bytes()[:1000])
    done = CliRunner().invoke(main, ["compare", str(tmp_path / "b.gguf"), str(models / "a.gguf"), *arguments])
    assert done.exit_code == 1
    assert "b.gguf: corrupt header: 80 tensors in a file of 1000 bytes; download the file again" in done.stderr
