"""`gemma-edge` as a job's process: it ends when the one that watches over it does, whichever way.

The other end of its standard input is the watcher's: the kernel closes it when that process dies. What has been
written so far is nobody's, and the next run tidies it up (runtime/formats/atomic.py). Its standard output is a number:
the most memory that it had.
"""

import os
import sys
import threading

from gemma_edge.converter.cli import main
from gemma_edge.converter.report import peak_rss_bytes

_ABANDONED = 143
"""What a shell says of a process that was terminated."""


def _end_with_the_watcher() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(_ABANDONED)


def _run() -> None:
    told = os.dup(sys.stdout.fileno())
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    threading.Thread(target=_end_with_the_watcher, daemon=True).start()
    try:
        main(prog_name="gemma-edge")
    finally:
        os.write(told, str(peak_rss_bytes() or 0).encode())


if __name__ == "__main__":
    _run()
