"""`gemma-edge` as a job's process: it ends when the one that watches over it does, whichever way.

The other end of its standard input is the watcher's: the kernel closes it when that process dies. What has been
written so far is nobody's, and the next run tidies it up (runtime/formats/atomic.py).
"""

import os
import sys
import threading

from gemma_edge.converter.cli import main

_ABANDONED = 143
"""What a shell says of a process that was terminated."""


def _end_with_the_watcher() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(_ABANDONED)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_watcher, daemon=True).start()
    main(prog_name="gemma-edge")
