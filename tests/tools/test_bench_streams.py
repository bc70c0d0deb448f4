"""Both ways run the same rows, and both are printed."""

import subprocess
import sys
from pathlib import Path

from gemma_edge.converter.convert import convert


def test_one_after_another_and_at_once(repository: Path, tiny_gemma3: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "tiny.litertlm"
    convert("custom-int4", tiny_gemma3, bundle, context=256)
    command = [sys.executable, "-m", "tools.bench_streams", str(bundle), "--streams", "3", "--tokens", "5"]
    options = ["--rounds", "1", "--cache-dir", str(tmp_path)]
    done = subprocess.run([*command, *options], cwd=repository, capture_output=True, text=True, check=True)
    alone, together, ratio = (line.split() for line in done.stdout.splitlines())
    assert alone[-1] == together[-1] == "rows"
    assert int(together[-2]) <= int(alone[-2])  # a common beginning may have been copied
    assert float(ratio[-1]) > 0
