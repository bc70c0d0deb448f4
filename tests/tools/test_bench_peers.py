"""The comparison of engines runs each, names what one cannot run, and prints ratios to the first."""

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from gemma_edge.converter.convert import convert
from gemma_edge.runtime.chat.figures import BenchmarkInfo
from gemma_edge.runtime.measure.bench import Benchmark
from tools.bench_peers import Run, Work, litert_lm, main, processor, table


def test_every_engine_that_is_here_is_measured(repository: Path, tiny_gemma3n: Path, tmp_path: Path) -> None:
    bundle, directory = tmp_path / "tiny.litertlm", tmp_path / "tiny"
    convert("custom-int4", tiny_gemma3n, bundle, context=128, measure=False)
    convert("custom-int4", tiny_gemma3n, directory, format="onnx", measure=False)
    command = [sys.executable, "-m", "tools.bench_peers", "--litertlm", str(bundle), "--onnx", str(directory)]
    options = ["--litert-torch", str(bundle), "--prefill", "20", "--decode", "5", "--rounds", "1"]
    done = subprocess.run([*command, *options], cwd=repository, capture_output=True, text=True, check=True)
    complaint, _, rest = done.stdout.partition("\n")
    assert complaint.startswith("onnxruntime-genai: ")
    assert complaint.endswith("genai_config.json")  # it knows no Gemma 3n
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in rest.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[1:]] == [
        "ours, LiteRT", "litert_lm", "litert_lm with litert-torch's bundle", "ours, ONNX",
    ]  # fmt: skip
    for row in rows[1:]:
        assert all(float(cell.rstrip("%")) > 0 for cell in row[1:3] + row[8:])


def test_a_run_that_ends_early_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    short = BenchmarkInfo(1.0, 1.0, 256, 100.0, 3, 10.0)
    monkeypatch.setattr(Benchmark, "run", lambda _: short)
    with pytest.raises(click.ClickException, match="decoded 3 tokens of 64; see its log for why it ended"):
        litert_lm(Work("a.litertlm", 256, 64, 2))


def test_a_ratio_says_how_often_ours_is_faster() -> None:
    runs = {"a": [Run(1, 30, 8, 5, 5), Run(2, 20, 8, 5, 5), Run(9, 10, 8, 5, 5)], "b": [Run(4, 10, 16, 5, 5)]}
    lines = [*table({name: found[0] for name, found in runs.items()}, runs, {"a": 16})]
    assert lines[2].startswith("| a | 20.0 | 8.0 | 1.00 | 1.00 | 50% |")
    assert lines[3].startswith("| b | 10.0 | 16.0 | 2.00 | 0.50 |  |")


def test_a_processor_is_named_with_its_instructions() -> None:
    assert processor("model name\t: A CPU\nflags\t\t: fpu avx2 avx512_vnni\n") == "A CPU (AVX-512 VNNI)"
    assert processor("Features\t: fp asimd asimddp\n") == "unnamed processor (dot product)"


def test_no_file_is_refused() -> None:
    found = CliRunner().invoke(main, [])
    assert found.exit_code == 2
    assert "no file given; give at least one of --litertlm, --onnx and --gguf" in found.stderr
