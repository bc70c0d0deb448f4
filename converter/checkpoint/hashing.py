"""SHA-256 of a checkpoint's files, while something else is done."""

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.progress import Stage


@contextmanager
def hashing(source: Checkpoint, stage: Stage) -> Iterator[Future[dict[str, str]]]:
    """SHA-256 of the inputs, in the background from now on.

    Given up when the block fails: nobody waits for gigabytes to be hashed to read an error.
    """
    on_bytes = stage("hash input", sum(path.stat().st_size for path in source.input_files()))
    failed = threading.Event()

    def count(nbytes: int) -> None:
        if failed.is_set():
            raise CancelledError
        on_bytes(nbytes)

    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(source.sha256, count)
        except BaseException:
            failed.set()
            raise
