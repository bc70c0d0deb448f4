"""Weights trained on a 4-bit grid come back from their bundle to the last bit of the checkpoint's dtype."""

from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from gemma_edge.converter.quantize.qat_grid import BLOCK, DTYPES, ENCODING, Q4_0, Grid, is_q4_0, keep_grid, lies_on_grid
from gemma_edge.converter.quantize.quantize import QuantError, Quantized, QuantizeError, Search, quantize_rows
from tests.runtime.formats.test_encoding_kernels import COLUMNS, RESOLVERS, ROWS, OneOp

Float32 = NDArray[np.float32]
NUMPY = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}

pytestmark = pytest.mark.filterwarnings("error")


def stored_as(values: Float32, dtype: str) -> Float32:
    """What a checkpoint of `dtype` gives back; rounded by another implementation than ours."""
    return values.astype(NUMPY[dtype]).astype(np.float32)


def gemma_qat(rows: int, columns: int, dtype: str, seed: int = 0) -> Float32:
    """As Google's QAT checkpoints are: a bfloat16 step per block, levels -8 to 7, the largest on any of them."""
    rng = np.random.default_rng(seed)
    steps = stored_as(rng.uniform(0.001, 0.02, (rows, columns // BLOCK, 1)).astype(np.float32), "BF16")
    levels = np.clip(np.rint(rng.normal(0, 2.4, (rows, columns // BLOCK, BLOCK))), -8, 7).astype(np.float32)
    return stored_as((steps * levels).reshape(rows, columns), dtype)


def q4_0(rows: int, columns: int, dtype: str, seed: int = 0) -> Float32:
    """Written as llama.cpp's quantize_row_q4_0_ref says: d = (largest value, with its sign) / -8, as float16."""
    values = np.random.default_rng(seed).normal(0, 0.02, (rows, columns // BLOCK, BLOCK)).astype(np.float32)
    largest = np.take_along_axis(values, np.abs(values).argmax(-1, keepdims=True), -1)
    d = (largest / np.float32(-8)).astype(np.float16).astype(np.float32)
    levels = np.clip(np.floor(values / d + np.float32(8.5)), 0, 15) - 8
    return stored_as((d * levels).reshape(rows, columns), dtype)


def restored(quantized: Quantized, shape: tuple[int, ...]) -> Float32:
    return ENCODING.dequantize(quantized.data, quantized.scales, shape)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gemmas_qat_weights_are_kept_to_the_last_bit(dtype: str) -> None:
    rows = gemma_qat(97, 1152, dtype)
    assert lies_on_grid(rows[:4])
    kept = keep_grid(rows, Grid(dtype), Search.MSE)
    np.testing.assert_array_equal(stored_as(restored(kept, rows.shape), dtype), rows)
    assert (kept.error.exact, kept.error.values) == (rows.size, rows.size)
    assert kept.scales is not None
    scales = kept.scales.astype(np.float32)
    assert (scales > 0).all()
    np.testing.assert_array_equal(stored_as(scales, "BF16"), scales)  # XNNPACK would round others


@pytest.mark.parametrize("dtype", DTYPES)
def test_q4_0_weights_are_kept_to_the_last_bit_where_steps_may_be_negative(dtype: str) -> None:
    rows = q4_0(97, 1152, dtype)
    assert lies_on_grid(rows[:4])
    kept = keep_grid(rows, Grid(dtype, negative_steps=True), Search.MSE)
    np.testing.assert_array_equal(stored_as(restored(kept, rows.shape), dtype), rows)
    assert kept.error.exact == rows.size
    assert kept.scales is not None
    assert 0.4 < (kept.scales < 0).mean() < 0.6


def test_where_steps_may_not_be_negative_only_the_largest_value_of_such_blocks_moves() -> None:
    rows = q4_0(97, 1152, "BF16")
    kept = keep_grid(rows, Grid("BF16"), Search.MSE)
    assert kept.scales is not None
    assert (kept.scales > 0).all()
    found = stored_as(restored(kept, rows.shape), "BF16").reshape(-1, BLOCK)
    groups = rows.reshape(-1, BLOCK)
    moved = found != groups
    turned = groups.max(axis=1) > -groups.min(axis=1)
    assert (moved.sum(axis=1)[turned] >= 1).all()
    assert not moved[~turned].any()
    np.testing.assert_array_equal(
        groups[moved], np.broadcast_to(groups.max(axis=1, keepdims=True), groups.shape)[moved]
    )
    assert kept.error.exact == rows.size - moved.sum()
    # 28.0 dB; quantized anew 25.6.
    assert kept.error.snr_db > quantize_rows(rows, ENCODING).error.snr_db + 2


@pytest.mark.parametrize("search", Search)
def test_blocks_on_no_grid_are_quantized_as_any_others(search: Search) -> None:
    rows = stored_as(np.random.default_rng(1).normal(0, 0.02, (64, 256)).astype(np.float32), "BF16")
    kept, plain = keep_grid(rows, Grid("BF16"), search), quantize_rows(rows, ENCODING, search)
    np.testing.assert_array_equal(kept.data, plain.data)
    np.testing.assert_array_equal(kept.scales, plain.scales)
    assert kept.error.squared == pytest.approx(plain.error.squared, rel=1e-5)
    assert 0 < kept.error.exact < rows.size / 10


def test_a_mixed_tensor_is_kept_block_by_block() -> None:
    rows = gemma_qat(8, 256, "BF16")
    other = stored_as(np.random.default_rng(1).normal(0, 0.02, (8, 256)).astype(np.float32), "BF16")
    rows[:, :128] = other[:, :128]
    kept = keep_grid(rows, Grid("BF16"), Search.MSE)
    np.testing.assert_array_equal(stored_as(restored(kept, rows.shape), "BF16")[:, 128:], rows[:, 128:])
    np.testing.assert_array_equal(kept.data[:, :64], quantize_rows(other, ENCODING).data[:, :64])


def test_a_step_below_float16s_range_is_rounded_and_its_levels_are_kept() -> None:
    rows = gemma_qat(16, 256, "BF16") * np.float32(2.0**-13)  # steps of about 2^-20; float16's are 2^-24 apart there
    kept = keep_grid(rows, Grid("BF16"), Search.MSE)
    assert kept.error.exact < rows.size
    assert kept.error.snr_db > quantize_rows(rows, ENCODING).error.snr_db + 3


@pytest.mark.parametrize("value", [0.0, 0.25, -0.25])
def test_blocks_of_one_value(value: float) -> None:
    rows = np.full((2, 64), value, np.float32)
    kept = keep_grid(rows, Grid("BF16"), Search.MSE)
    np.testing.assert_array_equal(restored(kept, rows.shape), rows)
    assert not lies_on_grid(rows)  # by chance, not by training


def test_chunks_give_the_bytes_of_the_whole() -> None:
    rows = np.concatenate([gemma_qat(100, 1152, "BF16"), q4_0(100, 1152, "BF16")])
    whole = keep_grid(rows, Grid("BF16"), Search.MSE)
    parts = [keep_grid(part, Grid("BF16"), Search.MSE) for part in np.split(rows, [1, 7, 130])]
    np.testing.assert_array_equal(np.concatenate([part.data for part in parts]), whole.data)
    np.testing.assert_array_equal(np.concatenate([part.scales for part in parts]), whole.scales)
    assert sum((part.error for part in parts), QuantError()).exact == whole.error.exact


@pytest.mark.parametrize("dtype", DTYPES)
def test_ordinary_weights_lie_on_no_grid(dtype: str) -> None:
    rng = np.random.default_rng(2)
    for rows in (rng.standard_normal((4, 1152)), rng.laplace(size=(4, 1152)), np.zeros((4, 64))):
        assert not lies_on_grid(stored_as(rows.astype(np.float32), dtype))
    assert not lies_on_grid(np.rint(rng.normal(0, 40, (4, 1152))).astype(np.float32))  # 8 bits


def test_values_that_are_too_large_are_refused() -> None:
    rows = gemma_qat(1, 32, "BF16") * np.float32(2.0**30)
    with pytest.raises(
        QuantizeError, match=r"^found a value of .*, blockwise int4 holds up to 456960; use int4 without"
    ):
        keep_grid(rows, Grid("BF16"), Search.MSE)


# ---------------------------------------------------------------- what kernels do with it


@pytest.mark.parametrize("resolver", RESOLVERS)
def test_litert_multiplies_by_kept_weights(resolver: str) -> None:
    """-8 is among them. Blocks are read right by both of LiteRT's kernels, unlike -8 in rows."""
    rows = gemma_qat(ROWS, COLUMNS, "BF16")
    kept = keep_grid(rows, Grid("BF16"), Search.MSE)
    assert kept.scales is not None
    assert (ENCODING.unpack(kept.data, rows.shape) == -8).any()
    model = OneOp(ENCODING, kept.data, kept.scales)
    found = model.multiplied(127 * np.eye(COLUMNS, dtype=np.float32), RESOLVERS[resolver])
    # LiteRT's own kernel is off by 2^-15 in a few products; a scale rounded to 8 bits would be off by 2^-9.
    np.testing.assert_allclose(found.T / 127, restored(kept, rows.shape), rtol=2**-14, atol=0)


def test_xnnpack_refuses_negative_steps() -> None:
    """Why a grid for LiteRT has none. When this fails, Grid.negative_steps may be true there."""
    rows = q4_0(ROWS, COLUMNS, "BF16")
    kept = keep_grid(rows, Grid("BF16", negative_steps=True), Search.MSE)
    assert kept.scales is not None
    model = OneOp(ENCODING, kept.data, kept.scales)
    with pytest.raises(RuntimeError, match="unsupported scale value"):
        model.multiplied(127 * np.eye(COLUMNS, dtype=np.float32), RESOLVERS["xnnpack"])


# ---------------------------------------------------------------- Q4_0 of a GGUF


def q4_0_blocks(levels: NDArray[np.integer[Any]], steps: NDArray[np.float16]) -> Float32:
    """Values as gguf dequantizes a block: (nibble - 8) * d, d of either sign. levels: [b, 32]; steps: [b]."""
    blocks = np.empty((len(levels), 18), np.uint8)
    blocks[:, :2] = steps.astype("<f2")[:, np.newaxis].view(np.uint8)
    nibbles = (levels + 8).astype(np.uint8)
    blocks[:, 2:] = nibbles[:, :16] | nibbles[:, 16:] << 4
    values: Float32 = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q4_0)
    return values


def test_every_block_that_q4_0_can_hold_is_kept() -> None:
    """Of any levels and any finite float16 step, subnormal ones and zero among them."""
    rng = np.random.default_rng(0)
    steps = rng.integers(0, 1 << 16, 4000, np.uint16).view(np.float16)
    steps = np.where(np.abs(steps) < 8000, steps, np.float16(0))  # 8 * step is to be a float16 as well; NaN are zero
    levels = rng.integers(-8, 8, (4000, BLOCK)) * rng.integers(0, 2, (4000, 1)) ** rng.integers(0, 2, (4000, BLOCK))
    rows = q4_0_blocks(levels, steps)
    assert is_q4_0(rows)
    kept = keep_grid(rows, Grid(Q4_0, negative_steps=True), Search.MSE)
    np.testing.assert_array_equal(restored(kept, rows.shape), rows)
    assert kept.error.exact == rows.size


def test_a_step_is_one_that_float16_holds() -> None:
    """Multiples of 3 of a step with 11 bits: three times the step would need 13."""
    step = np.float16(1 + 2**-10)
    rows = q4_0_blocks(np.resize([3, 0, -3, 6, -6], (1, BLOCK)), np.array([step]))
    for negative_steps in (False, True):
        kept = keep_grid(rows, Grid(Q4_0, negative_steps), Search.MSE)
        np.testing.assert_array_equal(restored(kept, rows.shape), rows)


def test_without_negative_steps_eight_becomes_seven_and_is_counted() -> None:
    rows = q4_0_blocks(np.resize([-8, 7, 0, 1], (1, BLOCK)), np.array([-0.5], np.float16))
    kept = keep_grid(rows, Grid(Q4_0), Search.MSE)
    found = restored(kept, rows.shape)
    assert kept.error.exact == BLOCK - 8
    np.testing.assert_array_equal(found[rows != 4], rows[rows != 4])
    assert set(found[rows == 4]) == {3.5}


def test_what_is_not_q4_0() -> None:
    rows = q4_0_blocks(np.resize(np.arange(-8, 8), (2, BLOCK)), np.array([0.5, 0.25], np.float16))
    assert is_q4_0(rows)
    rows[1, 5] *= np.float32(1 + 2**-20)
    assert not is_q4_0(rows)
