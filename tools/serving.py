"""A `gemma-edge serve` process for tests and tools."""

import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Server:
    """url: without a path. log: what it printed, to its end."""

    url: str
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def hard_kib(self) -> int:
        """Anonymous and shared memory now, in KiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return sum(int(found) for found in re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+) kB", status, re.MULTILINE))


@contextmanager
def serving(
    bundle: Path, *options: str, start_s: float = 120, within: Callable[[Sequence[str]], list[str]] = list
) -> Iterator[Server]:
    """Started on a free port, and stopped as a service is: by SIGTERM. Raises RuntimeError: it does not start.

    within: what makes of a command the one to run, as `MemoryCgroup.command`.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "gemma_edge.converter", "serve", str(bundle), "--port", "0", *options]
        with log.open("wb") as output:
            process = subprocess.Popen(within(command), stdout=output, stderr=output)
        try:
            yield Server(_address(process, log, start_s), process, log)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(process: "subprocess.Popen[bytes]", log: Path, start_s: float) -> str:
    end = time.monotonic() + start_s
    while time.monotonic() < end:
        if found := re.search(r" at (http://\S+)/v1,", log.read_text(errors="replace")):
            return found[1]
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"the server did not start: {log.read_text(errors='replace')[-2000:]}")
