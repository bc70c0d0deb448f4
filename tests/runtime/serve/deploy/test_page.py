"""runtime/DEPLOY.md, from its first command to its last: on this machine what a PC does, on an emulated Raspberry Pi 4
what a Pi does, with a tiny model. Left out is what needs a whole Pi: sudo, scp, systemctl.
"""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gemma_edge.converter.cli import convert_main
from tools.aarch64 import REPOSITORY, EmulatedPi, EmulatorError, default_cache, emulated_pi

TEXT = (REPOSITORY / "runtime" / "DEPLOY.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"^```sh\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
BUNDLE = "/srv/gemma-edge/e2b.litertlm"
COMMAND_LINE = "from gemma_edge.converter.cli import main; main()"  # what the script gemma-edge runs


def documented(*words: str) -> list[str]:
    """The first command that begins so, up to where its output goes, without what only prints a file."""
    found = next(command for command in COMMANDS if tuple(command[: len(words)]) == words)
    return [word for word in takewhile(lambda word: word not in ("|", ">"), found) if not word.startswith("--print")]


@pytest.fixture(scope="module")
def pi() -> EmulatedPi:
    try:
        return emulated_pi(default_cache())
    except EmulatorError as error:
        pytest.skip(str(error))


def test_every_command_is_known() -> None:
    """A new one wants a test."""
    programs = {
        "convert", "python3", "scp", "sudo", "export", "gemma-edge", "systemctl", "curl",
    }  # fmt: skip
    assert {command[0] for command in COMMANDS} == programs


def test_the_pc_converts(tiny_gemma3n: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = documented("convert")
    for name, value in {"--target": "custom-int4", "--checkpoint": str(tiny_gemma3n)}.items():
        command[command.index(name) + 1] = value
    monkeypatch.chdir(tmp_path)
    converted = CliRunner().invoke(convert_main, command[1:], catch_exceptions=False)
    assert converted.exit_code == 0, converted.output
    sent = next(command for command in COMMANDS if command[0] == "scp")[1]
    assert (tmp_path / sent).is_file()


def test_the_wheel_has_the_name_that_is_copied(wheel: Path) -> None:
    assert documented("python3") == shlex.split("python3 -m pip wheel --no-deps --wheel-dir dist .")
    sent = next(command for command in COMMANDS if command[0] == "scp")[2]
    assert wheel.match(Path(sent).name)


def test_what_is_installed_is_what_an_emulated_pi_has(pi: EmulatedPi) -> None:
    [install] = [command for command in COMMANDS if command[:2] == ["sudo", "/opt/gemma-edge/bin/pip"]]
    assert install[-1].endswith("[litert,serve]")
    done = pi.run(["-c", "import re2, starlette, uvicorn, os; print(os.uname().machine)"])
    assert done.stdout == "aarch64\n", done.stderr


@dataclass(frozen=True)
class Installed:
    """The wheel on the emulated machine, beside what it requires."""

    pi: EmulatedPi
    site: Path

    def start(self, arguments: Sequence[str], log: Path, **environment: str) -> subprocess.Popen[bytes]:
        """gemma-edge with these arguments. log: takes all it prints."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        told = kept | {"PYTHONPATH": str(self.site), "PYTHONUTF8": "1"} | environment
        command = [str(self.pi.python), "-c", COMMAND_LINE, *arguments]
        with log.open("wb") as file:
            return subprocess.Popen(command, env=told, cwd=self.site, stdout=file, stderr=file)


@pytest.fixture(scope="module")
def installed(pi: EmulatedPi, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(site)
    return Installed(pi, site)


def heard(systemd: socket.socket, server: subprocess.Popen[bytes], log: Path) -> bytes:
    """What the server tells, as long as it runs."""
    while True:
        try:
            return systemd.recv(4096)
        except TimeoutError:
            assert server.poll() is None, log.read_text()


def test_the_pi_serves(installed: Installed, tiny_bundle: Callable[[str, str], Path], tmp_path: Path) -> None:
    bundle, log = tiny_bundle("gemma3n", "int4"), tmp_path / "log"
    cache = ["--cache-dir", str(tmp_path)]

    def arguments(*words: str) -> list[str]:
        return [*(word.replace(BUNDLE, str(bundle)) for word in documented("gemma-edge", *words)[1:]), *cache]

    def ran(*words: str) -> str:
        done = installed.start(arguments(*words), log)
        assert done.wait() == 0, log.read_text()
        return log.read_text()

    assert "packed now" in ran("warm")
    assert "nothing to pack" in ran("warm")
    assert ran("run").strip()
    assert str(bundle) in ran("cache", "list")
    assert "would remove 0 entries" in ran("cache", "prune")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(1)
        command = [*arguments("serve"), "--port", "0", "--model-id", "e2b"]
        server = installed.start(command, log, NOTIFY_SOCKET=str(tmp_path / "notify"))
        try:
            assert heard(systemd, server, log) == b"READY=1"
            [address] = re.findall(r"http://[\d.:]+", log.read_text())
            for curl in (command for command in COMMANDS if command[0] == "curl"):
                answer = fetched(curl, address)
                assert answer.get("status") == "healthy" or answer["choices"][0]["message"]["content"]
            server.send_signal(signal.SIGTERM)
            assert heard(systemd, server, log) == b"STOPPING=1"
            assert server.wait() == 0
        finally:
            server.kill()
            server.wait()


def fetched(curl: list[str], address: str) -> dict[str, Any]:
    """What a curl command of the page would print, asked at another address."""
    url = next(word for word in curl if word.startswith("http://127.0.0.1:8080"))
    data = curl[curl.index("--data") + 1].encode() if "--data" in curl else None
    headers = dict([curl[curl.index("--header") + 1].split(": ")]) if data else {}
    request = urllib.request.Request(url.replace("http://127.0.0.1:8080", address), data, headers)
    with urllib.request.urlopen(request, timeout=600) as answer:
        found: dict[str, Any] = json.load(answer)
        return found
