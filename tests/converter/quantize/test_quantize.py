"""Quantization: errors bounded and measured, the same bytes however it is cut up, sensible at the edges."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from gemma_edge.converter.quantize.clip_search import SAMPLE, clip_search
from gemma_edge.converter.quantize.quantize import QuantError, Quantized, QuantizeError, Search, quantize_rows
from gemma_edge.runtime.formats.encoding import BLOCKS, Encoding

INTS = ("int8", "int4", "int2", *(f"int4-b{block}" for block in BLOCKS))
ALL = ("fp32", "fp16", *INTS)

pytestmark = pytest.mark.filterwarnings("error")  # nothing overflows or divides by zero on the way


def gaussian(rows: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, columns), np.float32) * np.float32(0.02)


def restored(quantized: Quantized, encoding: Encoding, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return encoding.dequantize(quantized.data, quantized.scales, shape)


@pytest.mark.parametrize("search", Search)
@pytest.mark.parametrize("name", ALL)
def test_the_reported_error_is_the_real_one(name: str, search: Search) -> None:
    encoding, values = Encoding.parse(name), gaussian(70, 1024)
    quantized = quantize_rows(values, encoding, search)
    difference = restored(quantized, encoding, values.shape).astype(np.float64) - values
    error = quantized.error
    # Relative 1e-4: the sums are float32 sums of differences formed before the last rounding.
    assert error.squared == pytest.approx((difference**2).sum(), rel=1e-4)
    assert error.signal == pytest.approx((values.astype(np.float64) ** 2).sum(), rel=1e-4)
    assert error.largest == pytest.approx(np.abs(difference).max(), rel=1e-4)
    assert error.values == values.size


@pytest.mark.parametrize("name", INTS)
def test_without_search_no_value_moves_further_than_half_a_step(name: str) -> None:
    encoding, values = Encoding.parse(name), gaussian(40, 512)
    quantized = quantize_rows(values, encoding, Search.ABSMAX)
    assert quantized.scales is not None
    width = encoding.block or 512
    steps = np.repeat(quantized.scales.astype(np.float32).reshape(40, -1), width, axis=1)
    moved = np.abs(restored(quantized, encoding, values.shape) - values)
    # A block's scale is rounded to 8 significant bits, so its largest value may sit 7 * 2^-9 steps further out.
    assert (moved <= steps * (0.5001 + (encoding.largest * 2**-9 if encoding.block else 0))).all()


@pytest.mark.parametrize(
    ("name", "low_db", "high_db"), [("int8", 41, 43), ("int4", 18.6, 19.1), ("int4-b32", 20.6, 21)]
)
def test_gaussian_rows_keep_the_signal_that_theory_allows(name: str, low_db: float, high_db: float) -> None:
    """Bounded on both sides: an error that is too small is a wrong measurement."""
    assert low_db < quantize_rows(gaussian(64, 2048), Encoding.parse(name)).error.snr_db < high_db


@pytest.mark.parametrize("name", ["int4", "int2", "int4-b32", "int4-b256"])
def test_the_search_is_nearly_as_good_as_trying_every_clip_on_every_value(name: str) -> None:
    encoding = Encoding.parse(name)
    values = np.random.default_rng(2).laplace(size=(32, 2048)).astype(np.float32)
    groups = np.abs(values.reshape(-1, encoding.block or 2048)).astype(np.float64)
    best = np.full(len(groups), np.inf)
    for ratio in np.arange(1, 0.15, -0.005):
        steps = groups.max(axis=1, keepdims=True) * ratio / encoding.largest
        stored = np.minimum(np.rint(groups / steps), encoding.largest) * steps
        best = np.minimum(best, ((stored - groups) ** 2).sum(axis=1))
    searched = quantize_rows(values, encoding, Search.MSE).error.squared
    plain = quantize_rows(values, encoding, Search.ABSMAX).error.squared
    assert searched < 1.05 * best.sum() < plain


@pytest.mark.parametrize("name", ALL)
def test_chunks_and_threads_give_the_bytes_of_the_whole(name: str) -> None:
    encoding, values = Encoding.parse(name), gaussian(331, 768)
    whole = quantize_rows(values, encoding)
    starts = [0, 1, 2, 130, 301]
    chunks = np.split(values, starts[1:])
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda chunk: quantize_rows(chunk, encoding), chunks))
    np.testing.assert_array_equal(np.concatenate([part.data for part in parts]), whole.data)
    if whole.scales is not None:
        np.testing.assert_array_equal(np.concatenate([part.scales for part in parts]), whole.scales)
    total = sum((part.error for part in parts), QuantError())
    assert total.squared == pytest.approx(whole.error.squared, rel=1e-4)
    assert (total.largest, total.values) == (whole.error.largest, whole.error.values)


@pytest.mark.parametrize(("largest", "width"), [(7, 32), (7, 256), (7, 257), (7, 2048), (7, 16384), (1, 6912)])
def test_the_search_sums_whole_numbers_that_stay_exact(largest: int, width: int) -> None:
    search = clip_search(largest, width)
    sampled = len(range(0, width, search.stride))
    assert sampled <= SAMPLE
    np.testing.assert_array_equal(search.costs, np.rint(search.costs))
    assert search.costs.max() * sampled < 2 ** (np.finfo(search.costs.dtype).nmant + 1)


@pytest.mark.parametrize(("largest", "clips_most"), [(7, False), (1, True)])
@pytest.mark.parametrize("width", [32, 64, 128])
def test_a_group_gets_the_first_of_the_ratios_that_cost_least(largest: int, clips_most: bool, width: int) -> None:
    search = clip_search(largest, width)
    values = np.abs(np.random.default_rng(3).standard_t(4, (500, width))).astype(np.float32)
    absmax = values.max(axis=1)
    cells = (values * (np.float32(len(search.costs) - 1) / absmax)[:, np.newaxis]).astype(np.intp)
    expected = search.costs[cells].sum(axis=1).argmin(axis=1)
    assert (expected > 15).any() == clips_most  # beyond those that are tried first
    found = search.ratios(values, absmax)
    np.testing.assert_array_equal(found, (40 - expected).astype(np.float32) / np.float32(40))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("search", Search)
def test_block_scales_survive_rounding_to_bfloat16(block: int, search: Search) -> None:
    values = gaussian(32, 512) * np.float32(10) ** np.linspace(-9, 6, 32, dtype=np.float32)[:, np.newaxis]
    scales = quantize_rows(values, Encoding("int", 4, block), search).scales
    assert scales is not None
    assert scales.dtype == np.float16
    assert (scales > 0).all()
    assert not (scales.astype(np.float32).view(np.uint32) & 0xFFFF).any()


@pytest.mark.parametrize("search", Search)
@pytest.mark.parametrize("name", INTS)
@pytest.mark.parametrize(
    "row",
    [
        np.zeros(256, np.float32),
        np.full(256, 1e-42, np.float32),  # subnormal
        np.full(256, 2.0**-130, np.float32) * np.arange(256, dtype=np.float32),
    ],
    ids=["zeros", "subnormal", "barely normal"],
)
def test_nothing_stays_nothing(row: NDArray[np.float32], name: str, search: Search) -> None:
    encoding = Encoding.parse(name)
    quantized = quantize_rows(row[np.newaxis], encoding, search)
    assert quantized.scales is not None
    scales = quantized.scales.astype(np.float32)
    # XNNPACK refuses scales below the smallest normal float32.
    assert (scales >= 2.0**-126).all()
    assert np.abs(restored(quantized, encoding, (1, 256)) - row).max() <= scales.max()
    assert quantized.error.relative_rms <= 1


@pytest.mark.parametrize("search", Search)
@pytest.mark.parametrize("name", INTS)
def test_a_constant_row_is_kept(name: str, search: Search) -> None:
    encoding = Encoding.parse(name)
    row = np.full((1, 256), -0.3, np.float32)
    found = restored(quantize_rows(row, encoding, search), encoding, row.shape)
    np.testing.assert_allclose(found, row, rtol=2**-8 if encoding.block else 1e-6)


@pytest.mark.parametrize("name", ["int8", "int4", "int4-b32"])
def test_one_huge_value_is_kept_when_clipping_it_would_cost_more(name: str) -> None:
    encoding, values = Encoding.parse(name), gaussian(1, 2048)
    values[0, 0] = 40.0  # 2000 sigma; the first column is always in the sample
    found = restored(quantize_rows(values, encoding), encoding, values.shape)
    assert found[0, 0] == pytest.approx(40.0, rel=2**-8)


def test_no_rows_are_no_bytes() -> None:
    for name in ALL:
        quantized = quantize_rows(np.empty((0, 256), np.float32), Encoding.parse(name))
        assert (quantized.data.nbytes, quantized.error.values, quantized.error.relative_rms) == (0, 0, 0)


def test_errors_add_up() -> None:
    total = QuantError(1.0, 100.0, 0.5, 10) + QuantError(3.0, 300.0, 0.25, 6)
    assert total == QuantError(4.0, 400.0, 0.5, 16)
    assert total.relative_rms == pytest.approx(0.1)
    assert total.snr_db == pytest.approx(20.0)
    assert QuantError().snr_db == float("inf")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ALL)
def test_values_that_are_not_finite_are_refused(name: str, bad: float) -> None:
    values = gaussian(8, 256)
    values[5, 7] = bad
    with pytest.raises(QuantizeError) as refused:
        quantize_rows(values, Encoding.parse(name))
    assert str(refused.value) == ("found a value that is NaN or infinite, expected numbers; get the checkpoint again")


def test_values_beyond_float16_are_refused() -> None:
    with pytest.raises(QuantizeError, match=r"^found a value of 6.56e\+04, fp16 holds up to 65504; use int8 or fp32$"):
        quantize_rows(np.full((1, 4), 65600.0, np.float32), Encoding.parse("fp16"))


def test_values_beyond_block_scales_are_refused() -> None:
    with pytest.raises(QuantizeError) as refused:
        quantize_rows(np.full((1, 32), 1e6, np.float32), Encoding.parse("int4-b32"))
    assert str(refused.value) == "found a value of 1e+06, blockwise int4 holds up to 456960; use int4 without blocks"
