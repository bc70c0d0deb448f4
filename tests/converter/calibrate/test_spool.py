"""Rounded tensors come back from the spool as they went in."""

from tempfile import TemporaryFile

import numpy as np
import pytest

from gemma_edge.converter.calibrate.spool import Spool
from gemma_edge.converter.quantize.quantize import QuantError, quantize_rows
from gemma_edge.runtime.formats.encoding import Encoding


@pytest.mark.parametrize("name", ["int4", "int4-b32", "int2"])
def test_any_rows_of_any_tensor(name: str) -> None:
    encoding = Encoding.parse(name)
    rng = np.random.default_rng(5)
    tensors = {f"layer {i}": rng.standard_normal((40 + i, 64), np.float32) for i in range(3)}
    whole = {key: quantize_rows(rows, encoding) for key, rows in tensors.items()}
    with TemporaryFile() as file:
        spool = Spool(file)
        for key, rows in tensors.items():
            spool.put(key, encoding, (len(rows), 64), whole[key])
        for key, rows in tensors.items():
            total = QuantError()
            for first in range(0, len(rows), 7):
                part = rows[first : first + 7]
                stored = spool.reader(key)(first, part)
                expected = quantize_rows(part, encoding)
                np.testing.assert_array_equal(stored.data, expected.data)
                np.testing.assert_array_equal(stored.scales, expected.scales)
                total += stored.error
            assert total == whole[key].error


def test_a_file_that_became_shorter_is_told() -> None:
    with TemporaryFile() as file:
        spool = Spool(file)
        rows = np.ones((4, 64), np.float32)
        encoding = Encoding.parse("int4")
        spool.put("layer", encoding, (4, 64), quantize_rows(rows, encoding))
        file.truncate(100)
        with pytest.raises(OSError, match="the temporary file of calibration has become shorter"):
            spool.rows("layer", 0, 4)
