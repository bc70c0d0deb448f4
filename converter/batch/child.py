"""`gemma-edge` as a job's process: it ends when the one that watches over it does, whichever way.

The other end of its standard input is the watcher's: the kernel closes it when that process dies. What has been
written so far is nobody's, and the next run tidies it up (runtime/formats/atomic.py). Its standard output is a number:
the most memory that it had.
"""

import os
import re
import sys
import threading
from pathlib import Path

from gemma_edge.converter.cli import main

_ABANDONED = 143
"""What a shell says of a process that was terminated."""


def _end_with_the_watcher() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(_ABANDONED)


def _peak_rss_bytes() -> int:
    """Of this program; 0 where there is no /proc. What getrusage says begins with what the watcher had."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


def _run() -> None:
    told = os.dup(sys.stdout.fileno())
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    threading.Thread(target=_end_with_the_watcher, daemon=True).start()
    try:
        main(prog_name="gemma-edge")
    finally:
        os.write(told, str(_peak_rss_bytes()).encode())


if __name__ == "__main__":
    _run()
