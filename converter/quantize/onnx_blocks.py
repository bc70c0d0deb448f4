"""How ONNX Runtime's kernels divide rows: the columns that one stored scale is for, and what that takes."""

import math

from gemma_edge.runtime.formats.encoding import Encoding, EncodingError

LARGEST_MATMUL_BLOCK = 256  # activations are rounded to int8 in groups of the same size: small ones lose less
_SMALLEST_BLOCK = 16  # both kernels


def scale_block(shape: tuple[int, ...], encoding: Encoding, is_table: bool) -> int:
    """Columns per stored scale, 0 for floats.

    Raises EncodingError where no block size fits: both kernels want a power of two from 16.
    """
    if encoding.kind == "float":
        return 0
    columns = shape[1]
    largest = columns if is_table else LARGEST_MATMUL_BLOCK
    block = _block(columns, encoding, largest)
    if block < _SMALLEST_BLOCK:
        raise EncodingError(
            f"{columns} columns do not split into blocks of {_SMALLEST_BLOCK}, as {encoding.name} in ONNX does; "
            "use fp16 or fp32"
        )
    return block


def _block(columns: int, encoding: Encoding, largest: int) -> int:
    return encoding.block or min(columns & -columns, largest)  # the largest power of two that divides columns


def scale_count(encoding: Encoding, shape: tuple[int, ...]) -> int:
    """Scales of a matrix to multiply by, whether or not a block size fits; 0 of floats."""
    return 0 if encoding.kind == "float" else math.prod(shape) // _block(shape[1], encoding, LARGEST_MATMUL_BLOCK)


def stored_bytes(shape: tuple[int, ...], encoding: Encoding, is_table: bool) -> int:
    """Bytes of values and scales, without alignment. Raises EncodingError as scale_block does."""
    return encoding.data_bytes(shape) + scale_bytes(shape, scale_block(shape, encoding, is_table))


def scale_bytes(shape: tuple[int, ...], block: int) -> int:
    """Of all scales of a matrix; 0 of floats."""
    return math.prod(shape) // block * 4 if block else 0
