"""Rows of a table that are read one by one: equal to those of the whole, and nothing of them mapped."""

import os
from pathlib import Path

import numpy as np
import pytest

from gemma_edge.runtime.executors.base import ExecutorError
from gemma_edge.runtime.executors.rows import RowsInFile

ROWS, COLUMNS, OFFSET = 400, 24, 4099


def written(path: Path) -> np.ndarray:
    table = np.random.default_rng(3).standard_normal((ROWS, COLUMNS)).astype(np.float16)
    path.write_bytes(b"\xff" * OFFSET + table.tobytes() + b"\xff" * 10)
    return table


def test_rows_in_any_order_and_again(tmp_path: Path) -> None:
    table = written(tmp_path / "table")
    rows = RowsInFile(tmp_path / "table", OFFSET, table.shape, table.dtype)
    ids = np.array([ROWS - 1, 0, 7, 7, 200])
    np.testing.assert_array_equal(rows[ids], table[ids])
    assert rows[np.array([], np.int64)].shape == (0, COLUMNS)


def test_nothing_is_mapped_and_the_file_is_closed_with_it(tmp_path: Path) -> None:
    table = written(tmp_path / "table")
    before = len([*Path("/proc/self/fd").iterdir()])
    rows = RowsInFile(tmp_path / "table", OFFSET, table.shape, table.dtype)
    rows[np.arange(ROWS)]
    assert str(tmp_path / "table") not in Path("/proc/self/maps").read_text()
    del rows
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_a_file_that_was_cut_meanwhile(tmp_path: Path) -> None:
    """A mapped one would end the process (SIGBUS)."""
    table = written(tmp_path / "table")
    rows = RowsInFile(tmp_path / "table", OFFSET, table.shape, table.dtype)
    os.truncate(tmp_path / "table", OFFSET + 100 * COLUMNS * 2 + 1)
    np.testing.assert_array_equal(rows[np.array([99])], table[99:100])
    with pytest.raises(ExecutorError, match="table: ends before row 100 of a table; it was changed, copy it again"):
        rows[np.array([99, 100])]
