"""How the values of one tensor become bytes: which encodings exist, how large they are, how to read them back.

An encoding knows nothing of the tensor it serves, and nothing of how its integers were chosen (converter/quantize/).
The layouts are TFLite's, so packed bytes go into a .tflite buffer as they are:

* fp32, fp16: little-endian IEEE 754. bf16: the upper half of a float32, rounded to nearest, ties to even.
* int8: one two's-complement byte per value.
* int4: two values per byte, the even column in the low nibble (schema TensorType.INT4).
* int2: four values per byte, column 4i in the lowest bits (schema TensorType.INT2). No recipe ships with it; it exists
  so that quality checks can show that they fail on a model that really is bad.
* head, head+3: a tied embedding that is read from the head's table. "+3" adds three bits of what the head's int4
  leaves of a value, see `with_rests`. Four of them lie in three nibbles: those of columns 0 to 3K/4 in the low three
  bits of each, those of the last quarter in the bits on top.

All integers are symmetric: value = integer * scale, no zero point. A scale serves one row (float32, TFLite
`quantized_dimension` 0) or one block of 32, 64, 128 or 256 columns of a row (float16, TFLite `BlockwiseQuantization`).
Rows are the first dimension. bf16, and int8 in blocks, are for formats of other runtimes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from gemma_edge.profiles.errors import GemmaEdgeError

BLOCKS = (32, 64, 128, 256)
"""Block sizes (columns) that TFLite's blockwise FULLY_CONNECTED takes."""

_FLOAT_BITS = (16, 32)
_INT_BITS = (2, 4, 8)
_PLAIN = {"fp32": ("float", 32), "fp16": ("float", 16), "int8": ("int", 8), "int4": ("int", 4), "int2": ("int", 2)}
_RESTS = {"head": ("rest", 0), "head+3": ("rest", 3)}
_REST_COLUMNS = 8  # whose rests fill whole bytes
_BF16 = "bf16"
NAMES = (*_PLAIN, *(f"int4-b{block}" for block in BLOCKS), _BF16, *(f"int8-b{block}" for block in BLOCKS))
"""Of all encodings, as `Encoding.parse` reads them."""


RESTS, FACTOR = ".rests", ".factor"
"""End the names of a table of rests, and of the number that rows of a table are multiplied by."""


class EncodingError(GemmaEdgeError):
    """An encoding that does not exist, or one that cannot hold a tensor of this shape or these values."""


@dataclass(frozen=True)
class Encoding:
    """One way to store a tensor.

    kind: "float", "int", or "rest" for what the head's table leaves of a value.
    bits: bits per value: 16 or 32 for float; 2, 4 or 8 for int; 0 or 3 for rest.
    block: columns that share a scale; 0 means one scale per row. Always 0 unless the encoding is int4 or int8.
    brain: of 16-bit floats, whether they are bfloat16.

    Raises EncodingError for a combination that no kernel reads.
    """

    kind: Literal["float", "int", "rest"]
    bits: int
    block: int = 0
    brain: bool = False

    def __post_init__(self) -> None:
        known = (*_PLAIN.values(), *_RESTS.values())
        if (self.kind, self.bits) not in known or (self.brain and (self.kind, self.bits) != ("float", 16)):
            brain = " brain" if self.brain else ""
            raise EncodingError(
                f"a {self.bits}-bit{brain} {self.kind} encoding does not exist; use one of {_choices()}"
            )
        if self.block and (self.kind, self.bits) not in (("int", 4), ("int", 8)):
            raise EncodingError(
                f"{self._plain_name} has no blocks, found blocks of {self.block}; use {self._plain_name}"
            )
        if self.block and self.block not in BLOCKS:
            raise EncodingError(f"{self._plain_name} has no blocks of {self.block}; use {_listed(BLOCKS)}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The encoding called `text`: "fp32", "fp16", "bf16", "int8", "int4", "int2", "int4-b32" (in blocks of 32),
        "head", "head+3"."""
        if text == _BF16:
            return cls("float", 16, brain=True)
        if text in _RESTS:
            return cls(*_RESTS[text])  # type: ignore[arg-type]  # kind comes from the table
        plain, dash, block = text.partition("-b")
        if plain not in _PLAIN or (dash and not re.fullmatch("[1-9][0-9]{0,8}", block)):
            raise EncodingError(f"found encoding {text!r}, expected one of {_choices()}")
        kind, bits = _PLAIN[plain]
        return cls(kind, bits, int(block) if dash else 0)  # type: ignore[arg-type]  # kind comes from the table

    @property
    def name(self) -> str:
        """The text that `parse` reads back."""
        return f"{self._plain_name}-b{self.block}" if self.block else self._plain_name

    @property
    def _plain_name(self) -> str:
        if self.brain:
            return _BF16
        if self.kind == "rest":
            return f"head+{self.bits}" if self.bits else "head"
        return f"fp{self.bits}" if self.kind == "float" else f"int{self.bits}"

    @property
    def is_foreign(self) -> bool:
        """Whether it is for other runtimes alone: bf16, int8 in blocks."""
        return self.brain or (self.bits == 8 and self.block > 0)

    @property
    def largest(self) -> int:
        """The largest integer that quantization may use: 127, 7 or 1. Its negative is the smallest.

        -128, -8 and -2 can be stored, but are not used. LiteRT's own int4 FULLY_CONNECTED (2.3.0, without XNNPACK)
        reads -8 as +8, see tests/runtime/formats/test_encoding_kernels.py. Nor would it help: with the search, -8 to 7
        has 9 % less squared error, but its KL is 1.76e-3 against 1.72e-3 on tiny-gemma3n, 2.42e-3 against 2.61e-3 on
        tiny-gemma3.
        """
        return (1 << (self.bits - 1)) - 1

    @property
    def scale_dtype(self) -> np.dtype[np.floating]:
        """float32 for scales per row, float16 for scales per block, little-endian."""
        return np.dtype("<f2") if self.block else np.dtype("<f4")

    def check(self, shape: Sequence[int]) -> None:
        """Raises EncodingError, with the values that would work, if a tensor of `shape` cannot be stored like this."""
        if self.kind == "float":
            return
        if len(shape) != 2:
            raise EncodingError(f"{self.name} stores matrices, found shape {list(shape)}; use fp32 or fp16")
        columns = shape[1]
        if self.kind == "rest":
            if self.bits and columns % _REST_COLUMNS:
                raise EncodingError(
                    f"{columns} columns do not fill whole bytes of {self.name}, expected a multiple of "
                    f"{_REST_COLUMNS}; use int8"
                )
            return
        if self.block and columns % self.block:
            fitting = [block for block in BLOCKS if columns % block == 0]
            raise EncodingError(
                f"{columns} columns do not split into blocks of {self.block}; "
                f"use {_listed(fitting) if fitting else f'{self._plain_name} without blocks'}"
            )
        per_byte = 8 // self.bits
        if columns % per_byte:
            raise EncodingError(
                f"{columns} columns do not fill whole bytes of {self.name}, expected a multiple of {per_byte}; use int8"
            )

    def data_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of the values of a tensor of `shape`, without scales."""
        self.check(shape)
        return prod(shape) * self.bits // 8

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """[n] for a scale per row, [n, k / block] for a scale per block, [0] for floats and rests."""
        self.check(shape)
        if self.kind != "int":
            return (0,)
        return (shape[0], shape[1] // self.block) if self.block else (shape[0],)

    def scale_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of the scales of a tensor of `shape`; 0 for floats."""
        return prod(self.scale_shape(shape)) * self.scale_dtype.itemsize

    def nbytes(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor of `shape`, scales included."""
        return self.data_bytes(shape) + self.scale_bytes(shape)

    def pack(self, values: NDArray[np.int8] | NDArray[np.float32]) -> NDArray[np.uint8]:
        """Stored bytes of `values`: int8 [n, k] for int encodings and rests, float32 of any shape for floats.

        Returns uint8 [n, k * bits / 8] ([n * bits / 8] for a float vector). Raises EncodingError if an integer does
        not fit the encoding.
        """
        self.check(values.shape)
        if self.brain:
            return _brain_bytes(np.ascontiguousarray(values, np.float32))
        if self.kind == "float":
            return np.ascontiguousarray(values, dtype=f"<f{self.bits // 8}").view(np.uint8)
        integers = np.ascontiguousarray(values, dtype=np.int8)
        if self.kind == "rest":
            return _rest_bytes(integers) if self.bits else np.empty((len(integers), 0), np.uint8)
        if self.bits == 8:
            return integers.view(np.uint8)
        low, high = -self.largest - 1, self.largest
        if integers.size and (integers.min() < low or integers.max() > high):
            found = f"{integers.min()} to {integers.max()}"
            raise EncodingError(f"integers from {found} do not fit {self.name}; expected {low} to {high}")
        packed, bits = integers.view(np.uint8), self.bits
        while bits < 8:
            packed, bits = _join_pairs(packed, bits), 2 * bits
        return packed

    def unpack(self, data: NDArray[np.uint8] | bytes | memoryview, shape: Sequence[int]) -> NDArray[np.generic]:
        """Inverse of `pack`: int8 for int encodings and rests, float32 for floats, of `shape`.

        Raises EncodingError if `data` does not have data_bytes(shape) bytes.
        """
        stored = np.frombuffer(data, np.uint8)
        if stored.size != self.data_bytes(shape):
            raise EncodingError(
                f"found {stored.size} bytes for {self.name} of shape {list(shape)}, expected {self.data_bytes(shape)}; "
                "convert the model again"
            )
        if self.brain:
            return (stored.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
        if self.kind == "float":
            return stored.view(f"<f{self.bits // 8}").astype(np.float32).reshape(shape)
        if self.kind == "rest":
            return _rests(stored, shape[0]) if self.bits else np.zeros(shape, np.int8)
        per_byte, spare_bits = 8 // self.bits, 8 - self.bits
        values = np.empty((stored.size, per_byte), np.int8)  # [bytes, values per byte]
        for position in range(per_byte):
            # Shift the value to the top of the byte, then back down as a signed number: that copies its sign bit.
            values[:, position] = (stored << (spare_bits - position * self.bits)).view(np.int8) >> spare_bits
        return values.reshape(shape)

    def dequantize(
        self,
        data: NDArray[np.uint8] | bytes | memoryview,
        scales: NDArray[np.float32] | NDArray[np.float16] | None,
        shape: Sequence[int],
    ) -> NDArray[np.float32]:
        """float32 of `shape`: integer * scale, in float32. `scales` is None for floats and scale_shape(shape) else."""
        values = self.unpack(data, shape).astype(np.float32, copy=False)
        expected = self.scale_shape(shape)
        found = (0,) if scales is None else scales.shape
        if found != expected:
            raise EncodingError(
                f"found scales of shape {list(found)} for {self.name} of shape {list(shape)}, "
                f"expected {list(expected)}; convert the model again"
            )
        if scales is None:
            return values
        groups = values.reshape(*expected, -1)  # [n, k] -> [n, k] or [n, k / block, block]
        return (groups * scales.astype(np.float32)[..., np.newaxis]).reshape(shape)


def _brain_bytes(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Of finite numbers: to nearest, ties to even, at the 16 bits that are kept."""
    bits = values.view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2").view(np.uint8)


def with_rests(integers: NDArray[Any], rests: NDArray[Any]) -> NDArray[np.float32]:
    """What int4 integers and rests from 0 to 7, both [n, k], are together, in units of the scale; exact in float32.

    A rest says in which eighth of the step around its integer a value lies. Around the largest integer, 7 or -7, to
    which larger values are cut, the step is twice as wide, outwards.
    """
    found: NDArray[np.float32] = _together()[(integers.astype(np.int8, copy=False) << 3 | rests).view(np.uint8)]
    return found


@cache
def _together() -> NDArray[np.float32]:
    """[256]: what `with_rests` gives for the byte 8 * integer + rest. A look-up is six times as fast as the sums."""
    both = np.arange(256, dtype=np.uint8).view(np.int8)
    middle, width = _steps(both >> 3)
    return middle + ((both & 7).astype(np.float32) - np.float32(3.5)) * (width / np.float32(8))


def rests_of(values: NDArray[np.float32], integers: NDArray[Any]) -> NDArray[np.int8]:
    """The rests from 0 to 7 that come closest to `values` [n, k], which are in units of the scale."""
    middle, width = _steps(integers)
    eighths = np.floor((values - middle) / width * np.float32(8)) + np.float32(4)
    rests: NDArray[np.int8] = np.clip(eighths, 0, 7).astype(np.int8)
    return rests


def _steps(integers: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The middle and the width of what each integer stands for."""
    found = integers.astype(np.float32)
    outside: NDArray[np.float32] = found - np.clip(found, -6, 6)  # -1 or 1 for the largest, else 0
    return found + outside * np.float32(0.5), outside * outside + np.float32(1)


def _rest_bytes(rests: NDArray[np.int8]) -> NDArray[np.uint8]:
    """[n, k] of 0 to 7 -> [n, 3 k / 8]. Who looks nibbles up reads signed numbers: 8 less than what is in them."""
    if rests.size and (rests.min() < 0 or rests.max() > 7):
        raise EncodingError(f"rests from {rests.min()} to {rests.max()} do not fit three bits; expected 0 to 7")
    low, top = np.split(rests.view(np.uint8), [rests.shape[1] * 3 // 4], axis=1)  # [n, 3 k / 4], [n, k / 4]
    bits = np.concatenate([(top >> position & 1) << 3 for position in range(3)], axis=1)
    return _join_pairs(((low | bits) ^ 8).astype(np.uint8), 4)


def _rests(stored: NDArray[np.uint8], rows: int) -> NDArray[np.int8]:
    """Inverse of `_rest_bytes`."""
    lanes = stored.astype("<u2")  # see `_join_pairs`
    nibbles = ((lanes | lanes << 4) & 0x0F0F ^ 0x0808).view(np.uint8).reshape(rows, -1)  # [n, 3 k / 4]
    bits = (nibbles >> 3).reshape(rows, 3, -1)
    return np.concatenate([nibbles & 7, bits[:, 0] | bits[:, 1] << 1 | bits[:, 2] << 2], axis=1).view(np.int8)


def _join_pairs(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """[n, m] with a value in the low `bits` of each byte -> [n, m / 2] with pairs in the low 2 * `bits`.

    Works on little-endian 16-bit lanes, where a pair is (low byte, high byte): numpy vectorises it; with strided
    bytes it is five times slower.
    """
    mask = (1 << bits) - 1
    lanes = values.view("<u2")
    high = lanes >> (8 - bits)
    high &= mask << bits
    high |= lanes & mask
    return high.astype(np.uint8)


def _choices() -> str:
    return ", ".join(NAMES)


def _listed(numbers: Sequence[int]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} or {last}" if first else last
