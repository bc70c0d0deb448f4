"""Bundles decode ahead of whoever reads their logits, and no further than there is room for."""

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from gemma_edge.converter.evaluate import blas
from gemma_edge.converter.verify.errors import VerifyError
from gemma_edge.converter.verify.measure import decoding
from gemma_edge.converter.verify.measure.blas import spare_cores
from gemma_edge.converter.verify.measure.decoding import Decoding
from gemma_edge.converter.verify.measure.heap import give_back, kept_memory
from gemma_edge.converter.verify.measure.subject import CachedRows, Subject

VOCAB = 8
WINDOWS = np.arange(12).reshape(3, 4)


class _Subject:
    """Says token + step for every token."""

    def __init__(self, step: int = 0, fails_at: int | None = None, folder: Path | None = None) -> None:
        self.folder = folder
        self.decoded: list[int] = []
        self._step = step
        self._fails_at = fails_at

    def score(self, token_ids: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        for token in token_ids:
            if token == self._fails_at:
                raise VerifyError(f"no logits after {token}")
            self.decoded.append(token)
            yield np.full(VOCAB, token + self._step, np.float32)

    def cached_rows(self) -> CachedRows:
        return {len(self.decoded): (np.zeros((1, 1, 1), np.float32), np.zeros((1, 1, 1), np.float32))}


def _decoding(*subjects: _Subject, sample: int = 3, on_token: Any = lambda: None) -> Decoding:
    return Decoding(cast(Sequence[Subject], subjects), WINDOWS, sample, VOCAB, on_token)


def test_rows_come_in_order_with_a_sample_and_the_cache_after_it() -> None:
    done: list[int] = []
    with _decoding(_Subject(), _Subject(100), on_token=lambda: done.append(1)) as running:
        rows = [row.copy() for row in running.rows()]
        sample, cached = running.sample()
    assert [row[:, 0].tolist() for row in rows] == [[n, 100 + n] for n in range(12)]
    assert sample[:, 0].tolist() == [0, 1, 2]
    assert list(cached) == [3]
    assert len(done) == 12


def test_a_bundle_waits_where_there_is_no_more_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "SPOOL_BYTES", 4 * VOCAB * 2)
    subject = _Subject()
    with _decoding(subject) as running:
        for position, row in enumerate(running.rows()):
            assert row[0, 0] == position
            assert len(subject.decoded) <= position + 4  # two that wait, one at the door, one that is read


def test_a_failure_is_told_where_its_row_is_read() -> None:
    with _decoding(_Subject(fails_at=5)) as running:
        rows = running.rows()
        assert [next(rows)[0, 0] for _ in range(5)] == [0, 1, 2, 3, 4]
        with pytest.raises(VerifyError, match=r"^no logits after 5$"):
            next(rows)


def test_leaving_early_ends_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "SPOOL_BYTES", 4 * VOCAB)
    with _decoding(_Subject()):
        pass
    assert "decoding" not in [thread.name for thread in threading.enumerate()]


def test_a_full_disk_is_told_and_not_met_in_mapped_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_file: int, _offset: int, _length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(VerifyError) as refused:
        _decoding(_Subject(folder=tmp_path))
    assert str(refused.value) == (
        f"{tmp_path}: no room for 0 MiB of logits (No space left on device); give a --cache-dir on another disk"
    )


def test_numpy_multiplies_on_the_cores_that_are_left() -> None:
    threads = blas.blas_threads()
    assert threads is not None
    count = threads.get
    before = count()
    with spare_cores(64, 64):
        assert count() == 1
        with spare_cores(64, 1):
            assert count() == 1  # never more than before
    assert count() == before


def test_without_openblas_or_glibc_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "_libraries", list)
    blas.blas_threads.cache_clear()
    assert blas.blas_threads() is None
    with spare_cores(2, 1):
        pass
    blas.blas_threads.cache_clear()
    monkeypatch.setattr("ctypes.CDLL", lambda _name: object())
    with kept_memory():
        give_back()


def test_kept_memory_gives_it_back() -> None:
    def anonymous_kib() -> int:
        [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
        return int(line.split()[1])

    before = anonymous_kib()
    with kept_memory():
        for _ in range(3):
            np.ones(8 << 20, np.float32)  # 32 MiB
    assert anonymous_kib() - before < 16 << 10
