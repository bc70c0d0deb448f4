"""All jobs of a list, as many at once as memory and `jobs` allow."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from gemma_edge.converter.batch.joblist import BatchError, Job
from gemma_edge.converter.batch.memory import PROCESS_BYTES, Budget
from gemma_edge.converter.batch.work import Outcome, Processes, Worker
from gemma_edge.profiles.sizes import format_bytes


def run_batch(
    listed: Sequence[Job],
    jobs: int,
    memory_bytes: int,
    retries: int = 2,
    on_change: Callable[[Outcome], None] = lambda _outcome: None,
) -> list[Outcome]:
    """Do what is not done yet; an outcome for each job, in the order of the list.

    jobs: processes at once, at most. memory_bytes: for all of them and this process together. retries: how often a
    process that was killed is started again. on_change: called from several threads.
    Raises BatchError where the budget holds no job at all.
    """
    left_bytes = memory_bytes - PROCESS_BYTES
    if left_bytes <= 0:
        raise BatchError(
            f"memory {format_bytes(memory_bytes)}: this process takes {format_bytes(PROCESS_BYTES)} of it; "
            "raise --memory"
        )
    # One BLAS thread for each: where jobs share cores, its threads wait for each other. It decides no byte.
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if jobs > 1 else {})
    processes = Processes()
    worker = Worker(Budget(left_bytes), retries, environment, on_change, processes)
    with ThreadPoolExecutor(jobs, thread_name_prefix="job") as pool:
        futures = [pool.submit(worker.do, job) for job in listed]
        try:
            return [future.result() for future in futures]
        except BaseException:  # Ctrl-C: what is running ends, what waits never starts
            pool.shutdown(wait=False, cancel_futures=True)
            processes.stop()
            raise
