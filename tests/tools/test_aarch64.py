"""Setting up the emulated Raspberry Pi 4. What runs on it is in tests/runtime/test_aarch64.py."""

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.litert_lm_engine import check_cpu
from tools.aarch64 import CORES, EmulatorError, describe_board, emulated_pi, main, run_step


@pytest.fixture
def nothing_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("nothing_installed")
def test_without_the_emulator_it_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(EmulatorError) as caught:
        emulated_pi(tmp_path)
    assert str(caught.value) == (
        "qemu-aarch64-static not found, it emulates a Raspberry Pi 4; apt-get install qemu-user-static"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("nothing_installed")
def test_the_command_line_says_so_in_one_line() -> None:
    result = CliRunner().invoke(main, ["-c", "print(1)"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: qemu-aarch64-static not found")
    assert result.stderr.count("\n") == 1


@pytest.mark.usefixtures("nothing_installed")
def test_a_system_without_apt_is_named() -> None:
    with pytest.raises(EmulatorError) as caught:
        run_step(["apt-get", "update"], "updating apt's arm64 lists")
    assert str(caught.value) == "updating apt's arm64 lists: apt-get not found; run this on Debian 12 or newer"


def test_a_failed_step_gives_its_last_line() -> None:
    with pytest.raises(EmulatorError) as caught:
        run_step([sys.executable, "-c", "import sys; sys.exit('first\\nno route to host')"], "downloading")
    assert str(caught.value) == (
        "downloading failed with status 1 (no route to host); check the network and run it again"
    )


def test_the_board_is_one_that_litert_lm_is_kept_from(tmp_path: Path) -> None:
    describe_board(tmp_path)
    cpuinfo = tmp_path / "proc/cpuinfo"
    assert cpuinfo.read_text().count("processor\t: ") == CORES
    with pytest.raises(GemmaEdgeError, match=r"litert_lm needs ARMv8\.1 atomics"):
        check_cpu("aarch64", cpuinfo)
    cpuinfo.write_text(cpuinfo.read_text().replace("crc32", "crc32 atomics"))
    check_cpu("aarch64", cpuinfo)  # a Raspberry Pi 5
