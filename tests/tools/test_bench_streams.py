"""Both ways run the same rows, and both are printed; what a step of several takes is, too."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gemma_edge.converter.convert import convert


@pytest.fixture(scope="module")
def bundle(tiny_gemma3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "tiny.litertlm"
    convert("custom-int4", tiny_gemma3, out, context=256, spans=(64,), batch=(2,), measure=False)
    return out


@pytest.fixture
def shown(repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[list[str]]]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def shown(*command: str) -> list[list[str]]:
        arguments = [sys.executable, "-m", *command, "--rounds", "1"]
        done = subprocess.run(arguments, cwd=repository, capture_output=True, text=True, check=True)
        return [line.split() for line in done.stdout.splitlines()]

    return shown


def test_one_after_another_and_at_once(bundle: Path, shown: Callable[..., list[list[str]]]) -> None:
    alone, together, ratio = shown("tools.bench_streams", str(bundle), "--streams", "3", "--tokens", "5")
    assert alone[-1] == together[-1] == "rows"
    assert int(together[-2]) <= int(alone[-2])  # a common beginning may have been copied
    assert float(ratio[-1]) > 0


def test_a_step_of_several(bundle: Path, shown: Callable[..., list[list[str]]]) -> None:
    compared, one, two = shown("tools.bench_batch", str(bundle), "--position", "50")
    assert int(compared[0]) > 10
    assert " ".join(compared[-2:]) == "0 differ"
    assert (one[0], two[0]) == ("1", "2")
