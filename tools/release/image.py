"""The container of `gemma-edge serve --print-container`, built and started as the head of that file says."""

import json
import os
import shutil
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gemma_edge.runtime.serve.deploy.files import Deployment
from tools.release.archives import WrongError, run

IMAGE: Final = "gemma-edge-proof"
DEBIAN: Final = "localhost/debian-python"
_PACKAGES: Final = "python3,python3-venv,ca-certificates"
_HEALTHY_WITHIN_S: Final = 300
_LOOK: Final = "import os; print(os.getuid(), os.access('/opt', os.W_OK), os.access('/var/cache/gemma-edge', os.W_OK))"


@dataclass(frozen=True)
class Engine:
    """What builds and runs containers: podman or docker, with options of its own."""

    command: tuple[str, ...]

    def __post_init__(self) -> None:
        """Raises WrongError: there is none."""
        if not self.command or shutil.which(self.command[0]) is None:
            raise WrongError(f"{' '.join(self.command) or 'no engine'}: not found; install podman or docker")

    @property
    def is_podman(self) -> bool:
        """By its name."""
        return Path(self.command[0]).name == "podman"

    def run(self, *arguments: str) -> str:
        """What it prints. Raises WrongError."""
        return run([*self.command, *arguments], os.environ)

    def make_debian(self, folder: Path) -> str:
        """The name of a base image of Debian's Python, by debootstrap: for where no registry of images is reached."""
        root, context = folder / "root", folder / "context"
        context.mkdir()
        run(["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", str(root)], os.environ)
        run(["tar", "--create", "--file", str(context / "base.tar"), "--directory", str(root), "."], os.environ)
        (context / "Containerfile").write_text("FROM scratch\nADD base.tar /\n", encoding="utf-8")
        self.run("build", "--tag", DEBIAN, "--file", str(context / "Containerfile"), str(context))
        return DEBIAN

    def prove(self, wheel: Path, constraints: Path, bundle: Path, folder: Path, options: "Options") -> str:
        """Build the image in `folder`, run it on a read-only root, ask for its health; one line. Raises WrongError."""
        port = _free_port()
        recipe = folder / "Containerfile"
        served = Deployment(bundle, "raspberry-pi-5-8gb", port=port)
        recipe.write_text(served.container(), encoding="utf-8")
        for file in (wheel, constraints):
            shutil.copy(file, folder)
        docker_format = ("--format", "docker") if self.is_podman else ()
        self.run("build", *docker_format, *options.build, "--tag", IMAGE, "--file", str(recipe), str(folder))
        nbytes = int(self.run("image", "inspect", "--format", "{{.Size}}", IMAGE))
        closed = ("--read-only", "--cap-drop", "all", "--memory", str(served.budget_bytes), *options.run)
        mounts = ("--publish", f"127.0.0.1:{port}:{port}", "--volume", f"{bundle}:/models/{bundle.name}:ro")
        name = self.run("run", "--detach", *closed, *mounts, "--volume", "/var/cache/gemma-edge", IMAGE).split()[-1]
        try:
            took_s = self._wait_until_healthy(name, recipe)
            user, root, cache = self.run("exec", name, "python3", "-c", _LOOK).split()
        finally:
            self.run("rm", "--force", "--volumes", name)
        if (user, root, cache) != ("10001", "False", "True"):
            raise WrongError(
                f"user {user}, may write to /opt: {root}, to the cache: {cache}; expected 10001, False, True"
            )
        return f"{nbytes / 2**20:.0f} MiB, healthy after {took_s:.0f} s, user {user}, nothing to write to but the cache"

    def _wait_until_healthy(self, name: str, recipe: Path) -> float:
        """Until the HEALTHCHECK of the recipe passes inside the container; seconds."""
        [line] = [line for line in recipe.read_text(encoding="utf-8").splitlines() if line.startswith("HEALTHCHECK")]
        check = json.loads(line.partition("CMD ")[2])
        began = time.monotonic()
        while True:
            try:
                self.run("exec", name, *check)
                return time.monotonic() - began
            except WrongError:
                if time.monotonic() - began > _HEALTHY_WITHIN_S:
                    raise
                time.sleep(1)


@dataclass(frozen=True)
class Options:
    """More options of the engine's `build` and `run`."""

    build: Sequence[str] = ()
    run: Sequence[str] = ()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
