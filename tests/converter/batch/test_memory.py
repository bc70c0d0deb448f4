"""The budget that jobs share, and what a conversion is said to take."""

import json
import threading
import time
from pathlib import Path

import pytest

from gemma_edge.converter.batch.joblist import BatchError, Job, read_list
from gemma_edge.converter.batch.memory import Budget, planned_bytes
from gemma_edge.profiles.sizes import GIB, MIB
from tools.synthetic import GEMMA3_1B


def job(folder: Path, more: str) -> Job:
    (folder / "list.toml").write_text(f'[[job]]\ntarget = "custom-int4"\nout = "a.litertlm"\n{more}')
    [found] = read_list(folder / "list.toml")
    return found


def test_what_is_asked_for_counts(tiny_gemma3: Path, tmp_path: Path) -> None:
    """Where a figure was measured, FARM.md has it; a plan may be far above it, and never below."""
    plain, measured, calibrated, own = (
        planned_bytes(job(tmp_path, more), tiny_gemma3)
        for more in ("measure = false", "", "calibrate = true", 'memory = "7GiB"')
    )
    assert 85 * MIB < plain < measured < calibrated
    assert 133 * MIB < measured < 300 * MIB
    assert own == 7 * GIB


def test_a_larger_model_takes_more(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(dict(GEMMA3_1B)))
    assert 700 * MIB < planned_bytes(job(tmp_path, ""), tmp_path) < GIB  # int8 took 698 MiB


def test_a_job_larger_than_the_budget_is_refused() -> None:
    with pytest.raises(BatchError) as caught, Budget(GIB).take(2 * GIB):
        pass
    assert str(caught.value) == (
        "needs 2.00 GiB of memory, 1.00 GiB are left for jobs; raise --memory, or say in the list what it really needs"
    )


def test_never_more_than_the_budget_and_everyone_gets_his_turn() -> None:
    budget, lock = Budget(10), threading.Lock()
    held, most, order = 0, 0, []

    def take(nbytes: int) -> None:
        nonlocal held, most
        with budget.take(nbytes):
            with lock:
                held += nbytes
                most = max(most, held)
                order.append(nbytes)
            time.sleep(0.001)
            with lock:
                held -= nbytes

    threads = [threading.Thread(target=take, args=(nbytes,)) for nbytes in [3, 4, 10, 2, 5, 9, 1] * 6]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(order) == len(threads)
    assert most <= 10


def test_a_large_job_is_not_passed_by_small_ones() -> None:
    budget, order = Budget(10), []

    def take(nbytes: int) -> None:
        with budget.take(nbytes):
            order.append(nbytes)

    with budget.take(5):
        large = threading.Thread(target=take, args=(10,))
        large.start()
        while budget._next != 2:
            time.sleep(0.001)
        small = threading.Thread(target=take, args=(1,))
        small.start()
        while budget._next != 3:
            time.sleep(0.001)
        assert not order
    large.join(10)
    small.join(10)
    assert order == [10, 1]
