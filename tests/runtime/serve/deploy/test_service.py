"""`gemma-edge serve` as systemd runs it, and what it prints for systemd."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gemma_edge.converter.cli import main
from gemma_edge.runtime.serve.deploy.files import Deployment

COMMAND = [sys.executable, "-c", "from gemma_edge.converter.cli import main; main()"]


def serve(*options: str) -> Result:
    return CliRunner().invoke(main, ["serve", "/srv/e2b.litertlm", *options])


def test_systemd_is_told(tiny_bundle: Callable[[str, str], Path], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(120)
        told = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"}
        arguments = ["serve", str(tiny_bundle("gemma3n", "int4")), "--port", "0", "--cache-dir", str(tmp_path)]
        server = subprocess.Popen([*COMMAND, *arguments], env=os.environ | told, stderr=subprocess.PIPE, text=True)
        try:
            assert systemd.recv(4096) == b"READY=1"
            assert server.stderr is not None
            lines = iter(server.stderr.readline, "")  # LiteRT's own are among them
            address = next(found[0] for line in lines if (found := re.search(r"http://[\w.:]+", line)))
            with urllib.request.urlopen(f"{address}/health", timeout=60) as health:
                assert json.load(health)["status"] == "healthy"
            assert [systemd.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            server.send_signal(signal.SIGTERM)
            while (heard := systemd.recv(4096)) == b"WATCHDOG=1":
                pass
            assert heard == b"STOPPING=1"
            assert server.wait(60) == 0
        finally:
            server.kill()
            server.communicate()


def test_the_unit_of_a_command_line() -> None:
    printed = serve("--profile", "raspberry-pi-5-8gb", "--slots", "2", "--metrics", "--port", "9000", "--print-unit")
    program = Path("/opt/gemma-edge/bin/gemma-edge")
    wanted = Deployment(
        Path("/srv/e2b.litertlm"), "raspberry-pi-5-8gb", program, port=9000, options=("--slots", "2", "--metrics")
    ).unit()
    own = Path(sys.executable).with_name("gemma-edge")
    if printed.exit_code:  # this Python lies where a service does not see it
        assert printed.output.startswith(f"error: {own}: a service does not see what lies in /")
    else:
        assert printed.stdout.replace(str(own), str(program)) == wanted


def test_the_container_file_of_a_command_line() -> None:
    printed = serve("--profile", "phone-2gb", "--slots", "auto", "--print-container")
    assert printed.stdout == Deployment(Path("/srv/e2b.litertlm"), "phone-2gb").container()


def test_options_that_are_repeated_are_all_there() -> None:
    given = ("--cors-origin", "https://a.org", "--cors-origin", "https://b.org", "--alert", "max_response_s=5")
    printed = serve("--profile", "phone-2gb", *given, "--print-container")
    assert printed.stdout == Deployment(Path("/srv/e2b.litertlm"), "phone-2gb", options=given).container()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--print-unit"], "say for which device: --profile"),
        (["--print-unit", "--profile", "phone-2gb", "--cache-dir", "x"], "a service keeps its cache in /var/cache/gem"),
        (["--print-container", "--profile", "toaster"], '"toaster"'),
        (["--print-unit", "--profile", "phone-2gb", "--port", "0"], "port is 0, expected one by which others find"),
        (["--print-unit", "--profile", "phone-2gb", "--new-key", "x"], "a key is made by a command of its own"),
        (
            ["--print-container", "--profile", "phone-2gb", "--policy", "p.toml"],
            "a container gets a profile of its own",
        ),
    ],
)
def test_files_that_cannot_be_printed(options: list[str], message: str) -> None:
    refused = serve(*options)
    assert refused.exit_code in (1, 2)
    assert message in refused.output
