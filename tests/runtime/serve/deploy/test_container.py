"""The container file: built where Docker runs, and its steps taken in a bare directory everywhere else.

There it is the same shell lines, with the wheel and its requirements from the package index, and at last the server as
a user who is not root.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from gemma_edge.runtime.serve.deploy.files import Deployment

USER = 10001  # of the container file
HEALTHY_WITHIN_S = 300


@dataclass(frozen=True)
class Instruction:
    """A line of a container file."""

    word: str
    rest: str


def instructions(text: str) -> list[Instruction]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [Instruction(*line.split(" ", 1)) for line in lines]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def docker_runs() -> bool:
    docker = shutil.which("docker")
    return docker is not None and subprocess.run([docker, "info"], capture_output=True, check=False).returncode == 0


@pytest.fixture
def bare() -> Iterator[Path]:
    """A directory that other users may enter."""
    with tempfile.TemporaryDirectory(prefix="gemma-edge-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def wait_until_healthy(check: list[str], environment: Mapping[str, str], server: subprocess.Popen[bytes]) -> None:
    """Until the HEALTHCHECK of the file passes."""
    until = time.monotonic() + HEALTHY_WITHIN_S
    while (checked := subprocess.run(check, env=environment, capture_output=True, check=False)).returncode:
        assert server.poll() is None, server.communicate()
        assert time.monotonic() < until, checked.stderr
        time.sleep(0.5)


def take_steps(text: str, root: Path, bundle: Path) -> None:
    """What a builder does, and then what runs the image, in `root` in place of /."""
    shutil.copy(bundle, root / "models" / bundle.name)
    owner = USER if os.geteuid() == 0 else os.geteuid()

    def here(line: str) -> str:
        moved = re.sub(r"(?<![\w.])/(?=(build|opt|models|var/cache/gemma-edge)\b)", f"{root}/", line)
        return moved.replace(f"{USER}:{USER}", f"{owner}:{os.getegid() if owner != USER else USER}")

    (root / "bin").mkdir()
    (root / "bin" / "python3").symlink_to(sys.executable)
    environment = {**os.environ, "PATH": f"{root}/bin:{os.environ['PATH']}"}
    environment.pop("VIRTUAL_ENV", None)
    found = instructions(text)
    for step in found:
        if step.word == "RUN":
            done = subprocess.run(
                ["sh", "-ec", here(step.rest)], env=environment, capture_output=True, text=True, check=False
            )
            if "pip install" in step.rest and "Could not find a version" in done.stderr:
                pytest.skip(f"the package index cannot be reached: {done.stderr.splitlines()[-1]}")
            assert done.returncode == 0, f"{step.rest}\n{done.stderr}"
    single = {step.word: step.rest for step in found}
    environment |= dict(pair.split("=", 1) for pair in here(single["ENV"]).split())
    entry, command = json.loads(single["ENTRYPOINT"]), json.loads(here(single["CMD"]))
    check = json.loads(single["HEALTHCHECK"].partition("CMD ")[2])
    # The interpreter of this environment may lie where only root reads; nothing else is left of root.
    no_root = (
        [
            "setpriv",
            f"--reuid={USER}",
            f"--regid={USER}",
            "--clear-groups",
            "--no-new-privs",
            "--inh-caps=-all,+dac_read_search",
            "--ambient-caps=-all,+dac_read_search",
        ]
        if owner == USER
        else []
    )
    program = shutil.which(entry[0], path=environment["PATH"])
    assert program == f"{root}/opt/gemma-edge/bin/gemma-edge"
    server = subprocess.Popen(
        [*no_root, program, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root
    )
    try:
        wait_until_healthy(check, environment, server)
        status = Path(f"/proc/{server.pid}/status").read_text()
        assert re.search(rf"^Uid:\s+{owner}\s", status, flags=re.MULTILINE)
    finally:
        server.terminate()
        server.communicate()
    assert list((root / "var" / "cache" / "gemma-edge").glob("*.xnnpack"))


def build_and_run(text: str, folder: Path, bundle: Path, port: int) -> None:
    """With Docker, as the head of the file says."""
    (folder / "Containerfile").write_text(text)
    subprocess.run(
        ["docker", "build", "--tag", "gemma-edge-test", "--file", "Containerfile", "."], cwd=folder, check=True
    )
    run = ["docker", "run", "--rm", "--read-only", "--cap-drop", "all", "--publish", f"127.0.0.1:{port}:{port}"]
    mounts = ["--tmpfs", "/var/cache/gemma-edge:uid=10001", "--volume", f"{bundle}:/models/{bundle.name}:ro"]
    server = subprocess.Popen([*run, *mounts, "gemma-edge-test"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    check = json.loads(
        next(step.rest for step in instructions(text) if step.word == "HEALTHCHECK").partition("CMD ")[2]
    )
    try:
        wait_until_healthy([sys.executable, *check[1:]], os.environ, server)
    finally:
        server.terminate()
        server.communicate()


def test_the_container_file_makes_a_server(
    wheel: Path, tiny_bundle: Callable[[str, str], Path], repository: Path, bare: Path
) -> None:
    bundle, port = tiny_bundle("gemma3n", "int4"), free_port()
    text = Deployment(bundle, "raspberry-pi-5-8gb", port=port).container()
    assert [step.word for step in instructions(text)][-1] == "CMD"
    build = bare if docker_runs() else bare / "build"
    for folder in (build, bare / "models", bare / "opt"):
        folder.mkdir(exist_ok=True)
    for file in (wheel, repository / "constraints.txt"):
        shutil.copy(file, build)
    if docker_runs():
        build_and_run(text, bare, bundle, port)
    else:
        take_steps(text, bare, bundle)
