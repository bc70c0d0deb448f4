"""`make demo` says no where litert_lm would kill the process."""

from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from gemma_edge.runtime.litert_lm_engine import check_cpu
from tools import demo


def test_a_cpu_without_atomics_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("Features\t: fp asimd evtstrm crc32 cpuid\n")
    monkeypatch.setattr(demo, "check_cpu", partial(check_cpu, "aarch64", cpuinfo))
    found = CliRunner().invoke(demo.main, [str(cpuinfo)])
    assert found.exit_code == 1
    assert found.stderr == (
        "Error: litert_lm needs ARMv8.1 atomics (LSE), this CPU has none; use the litert executor, which does not\n"
    )
