"""The comparison runs both engines and prints every figure of both."""

import subprocess
import sys
from pathlib import Path

from gemma_edge.converter.convert import convert
from tools.bench_runtime import FIGURES, table


def test_both_engines_are_measured(repository: Path, tiny_gemma3: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "tiny.litertlm"
    convert("custom-int4", tiny_gemma3, bundle, context=128)
    command = [sys.executable, "-m", "tools.bench_runtime", str(bundle), "--prefill", "20", "--decode", "5"]
    done = subprocess.run([*command, "--rounds", "1"], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0].split() == ["ours", "litert_lm", "ratio"]
    for line, name in zip(done.stdout.splitlines()[1:], FIGURES, strict=True):
        assert line.startswith(name)
        assert all(float(value) > 0 for value in line[len(name) :].split())


def test_another_checkout_takes_the_place_of_litert_lm(repository: Path, tiny_gemma3: Path, tmp_path: Path) -> None:
    directory = tmp_path / "tiny"
    convert("custom-int4", tiny_gemma3, directory, context=128, format="onnx")
    command = [sys.executable, "-m", "tools.bench_runtime", str(directory), "--prefill", "20", "--decode", "5"]
    options = ["--rounds", "1", "--beside", sys.executable]
    done = subprocess.run([*command, *options], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0].split() == ["ours", "beside", "ratio"]


def test_the_ratio_is_ours_over_theirs() -> None:
    lines = table([(1, 30, 8, 5, 5), (2, 20, 8, 5, 5), (9, 10, 8, 5, 5)], [(4, 10, 16, 5, 5)], "litert_lm").splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["0.500", "2.000", "0.500", "1.000", "1.000"]
