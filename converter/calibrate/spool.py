"""Tensors that are rounded already, in a temporary file until their section is written."""

import errno
import os
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from gemma_edge.converter.quantize.quantize import QuantError, Quantized
from gemma_edge.converter.quantize.stream import Quantizer
from gemma_edge.runtime.formats.encoding import Encoding


@dataclass(frozen=True)
class _Place:
    encoding: Encoding
    shape: tuple[int, int]
    data_offset: int
    scale_offset: int
    error: QuantError


@dataclass
class Spool:
    """Written once by one thread, then read by any number. `file` is anonymous and as large as what it holds."""

    file: BinaryIO
    _places: dict[str, _Place] = field(default_factory=dict)

    def put(self, name: str, encoding: Encoding, shape: tuple[int, int], stored: Quantized) -> None:
        """Append a whole tensor."""
        assert stored.scales is not None
        begin = self.file.seek(0, os.SEEK_END)
        self.file.write(stored.data.data)
        self.file.write(np.ascontiguousarray(stored.scales).data)
        self.file.flush()
        self._places[name] = _Place(encoding, shape, begin, begin + stored.data.nbytes, stored.error)

    def reader(self, name: str) -> Quantizer:
        """What gives the rows of `name`, whatever they were before."""
        return lambda first, rows: self.rows(name, first, len(rows))

    def rows(self, name: str, first: int, count: int) -> Quantized:
        """Rows [first, first + count). The tensor's whole error comes with its first row."""
        place = self._places[name]
        encoding, (all_rows, columns) = place.encoding, place.shape
        shape = (count, columns)
        row_bytes = encoding.data_bytes(place.shape) // all_rows
        row_scale_bytes = encoding.scale_bytes(place.shape) // all_rows
        data = self._read(count * row_bytes, place.data_offset + first * row_bytes)
        scales = self._read(count * row_scale_bytes, place.scale_offset + first * row_scale_bytes)
        return Quantized(
            np.frombuffer(data, np.uint8).reshape(count, row_bytes),
            np.frombuffer(scales, encoding.scale_dtype).reshape(encoding.scale_shape(shape)),
            QuantError() if first else place.error,
        )

    def _read(self, nbytes: int, offset: int) -> bytes:
        """All of it: one call gives at most 2 GiB, and may be cut short by a signal."""
        data = os.pread(self.file.fileno(), nbytes, offset)
        while len(data) < nbytes:
            more = os.pread(self.file.fileno(), nbytes - len(data), offset + len(data))
            if not more:
                raise OSError(errno.EIO, "the temporary file of calibration has become shorter")
            data += more
        return data
