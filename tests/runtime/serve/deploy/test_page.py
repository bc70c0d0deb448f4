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
from collections.abc import Callable
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
COMMAND_LINE = """
from gemma_edge.converter.cli import Commands
from gemma_edge.runtime.cache.cli import cache_main, warm_main
from gemma_edge.runtime.cli import run_main
from gemma_edge.runtime.serve.cli import serve_main
Commands("gemma-edge", commands={"cache": cache_main, "run": run_main, "serve": serve_main, "warm": warm_main})()
"""


def documented(*words: str) -> list[str]:
    """The one command that begins so, without the rest of its line after a pipe."""
    [found] = [command for command in COMMANDS if tuple(command[: len(words)]) == words]
    return [word for word in found[: found.index("|") if "|" in found else None] if not word.startswith("--print")]


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


def test_the_pi_serves(pi: EmulatedPi, tiny_bundle: Callable[[str, str], Path], tmp_path: Path) -> None:
    bundle = tiny_bundle("gemma3n", "int4")

    def moved(command: list[str]) -> list[str]:
        return ["-c", COMMAND_LINE, *(word.replace(BUNDLE, str(bundle)) for word in command[1:])]

    def ran(*words: str) -> str:
        done = pi.run(moved([*documented(*words), *options]))
        assert done.returncode == 0, done.stderr
        return done.stdout

    options = ["--cache-dir", str(tmp_path)]
    assert "packed now" in ran("gemma-edge", "warm")
    assert "nothing to pack" in ran("gemma-edge", "warm")
    assert ran("gemma-edge", "run").strip()
    assert str(bundle) in ran("gemma-edge", "cache", "list")
    assert "would remove 0 entries" in ran("gemma-edge", "cache", "prune")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(600)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment |= {
            "PYTHONPATH": str(REPOSITORY / ".types"), "PYTHONUTF8": "1", "NOTIFY_SOCKET": str(tmp_path / "notify"),
        }  # fmt: skip
        command = [
            str(pi.python),
            *moved(documented("gemma-edge", "serve")),
            *options,
            "--port",
            "0",
            "--model-id",
            "e2b",
        ]
        with (tmp_path / "log").open("w+") as log:
            server = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=log)
            try:
                assert systemd.recv(4096) == b"READY=1"
                log.seek(0)
                [address] = re.findall(r"http://[\w.:]+", log.read())
                for curl in (command for command in COMMANDS if command[0] == "curl"):
                    answer = fetched(curl, address)
                    assert answer.get("status") == "healthy" or answer["choices"][0]["message"]["content"]
                server.send_signal(signal.SIGTERM)
                assert systemd.recv(4096) == b"STOPPING=1"
                server.wait(600)
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
