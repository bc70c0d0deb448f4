"""Encodings: sizes, layouts, round trips and refusals. test_encoding_kernels.py asks LiteRT whether it agrees."""

import numpy as np
import pytest
import torch

from gemma_edge.runtime.formats.encoding import BLOCKS, Encoding, EncodingError, with_rests

FLOATS = ("fp32", "fp16")
INTS = ("int8", "int4", "int2", *(f"int4-b{block}" for block in BLOCKS), "int8-b32", "int8-b128")
SHAPE = (6, 512)


@pytest.mark.parametrize("name", FLOATS + INTS)
def test_name_parses_back(name: str) -> None:
    assert Encoding.parse(name).name == name


@pytest.mark.parametrize("name", INTS)
def test_every_integer_survives_packing(name: str) -> None:
    encoding = Encoding.parse(name)
    low, high = -encoding.largest - 1, encoding.largest
    values = np.random.default_rng(0).integers(low, high + 1, SHAPE, dtype=np.int8)
    values[0, : high - low + 1] = np.arange(low, high + 1)
    packed = encoding.pack(values)
    assert packed.nbytes == encoding.data_bytes(SHAPE)
    np.testing.assert_array_equal(encoding.unpack(packed.tobytes(), SHAPE), values)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("shape", [(5,), (3, 7)])
def test_floats_survive_packing(name: str, shape: tuple[int, ...]) -> None:
    encoding = Encoding.parse(name)
    values = np.random.default_rng(0).integers(-2048, 2049, shape).astype(np.float32)  # exact in float16
    packed = encoding.pack(values)
    assert packed.nbytes == encoding.data_bytes(shape) == encoding.nbytes(shape)
    np.testing.assert_array_equal(encoding.dequantize(packed, None, shape), values)


def test_bf16_is_torchs() -> None:
    values = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)
    values[0, :3] = [1 + 2.0**-8, 1 + 3 * 2.0**-8, 3e38]  # ties go to even
    encoding = Encoding.parse("bf16")
    packed = encoding.pack(values)
    assert packed.nbytes == encoding.data_bytes(values.shape) == 2 * values.size
    np.testing.assert_array_equal(
        encoding.dequantize(packed, None, values.shape), torch.from_numpy(values).bfloat16().float().numpy()
    )
    assert encoding.name == "bf16"


@pytest.mark.parametrize("name", INTS)
def test_dequantize_multiplies_each_group_by_its_scale(name: str) -> None:
    encoding = Encoding.parse(name)
    generator = np.random.default_rng(1)
    values = generator.integers(-encoding.largest, encoding.largest + 1, SHAPE, dtype=np.int8)
    scales = generator.uniform(0.5, 2, encoding.scale_shape(SHAPE)).astype(encoding.scale_dtype)
    width = encoding.block or SHAPE[1]
    expected = values.astype(np.float32)
    for row, column in np.ndindex(*SHAPE):
        expected[row, column] *= np.float32(scales.reshape(SHAPE[0], -1)[row, column // width])
    np.testing.assert_array_equal(encoding.dequantize(encoding.pack(values), scales, SHAPE), expected)
    assert scales.nbytes == encoding.scale_bytes(SHAPE)
    assert encoding.nbytes(SHAPE) == encoding.data_bytes(SHAPE) + scales.nbytes


def test_the_first_column_takes_the_lowest_bits() -> None:
    assert Encoding.parse("int4").pack(np.array([[1, -2, 3, -8]], np.int8)).tolist() == [[0xE1, 0x83]]
    assert Encoding.parse("int2").pack(np.array([[1, -2, 0, -1]], np.int8)).tolist() == [[0b11_00_10_01]]


def test_sizes_are_known_from_the_shape_alone() -> None:
    shape = (262_144, 7_680)  # the PLE table of Gemma 3n E2B
    assert Encoding.parse("int4").nbytes(shape) == 262_144 * 7_680 // 2 + 262_144 * 4
    assert Encoding.parse("int4-b32").nbytes(shape) == 262_144 * 7_680 // 2 + 262_144 * 240 * 2
    assert Encoding.parse("fp16").nbytes(shape) == 262_144 * 7_680 * 2


@pytest.mark.parametrize(
    "text", ["", "int5", "fp8", "int4-b", "int4-b0", "int4-bx", "int4-c32", "INT4", "int4-b" + "1" * 500]
)
def test_parse_refuses_by_listing_what_exists(text: str) -> None:
    with pytest.raises(EncodingError) as refused:
        Encoding.parse(text)
    assert str(refused.value) == (
        f"found encoding {text!r}, expected one of fp32, fp16, int8, int4, int2, "
        "int4-b32, int4-b64, int4-b128, int4-b256, bf16, int8-b32, int8-b64, int8-b128, int8-b256"
    )


def test_encodings_that_no_kernel_reads_do_not_exist() -> None:
    with pytest.raises(EncodingError, match=r"^a 3-bit int encoding does not exist; use one of fp32, .*int8-b256$"):
        Encoding("int", 3)
    with pytest.raises(EncodingError, match=r"^a 32-bit brain float encoding does not exist; use one of fp32, "):
        Encoding("float", 32, brain=True)
    with pytest.raises(EncodingError, match=r"^fp16 has no blocks, found blocks of 32; use fp16$"):
        Encoding.parse("fp16-b32")
    with pytest.raises(EncodingError, match=r"^int8 has no blocks of 48; use 32, 64, 128 or 256$"):
        Encoding.parse("int8-b48")
    with pytest.raises(EncodingError, match=r"^int4 has no blocks of 48; use 32, 64, 128 or 256$"):
        Encoding.parse("int4-b48")


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("int4-b256", (4, 1152), "1152 columns do not split into blocks of 256; use 32, 64 or 128"),
        ("int4-b64", (4, 96), "96 columns do not split into blocks of 64; use 32"),
        ("int4-b32", (4, 48), "48 columns do not split into blocks of 32; use int4 without blocks"),
        ("int4", (4, 7), "7 columns do not fill whole bytes of int4, expected a multiple of 2; use int8"),
        ("int2", (4, 6), "6 columns do not fill whole bytes of int2, expected a multiple of 4; use int8"),
        ("int8", (4,), "int8 stores matrices, found shape [4]; use fp32 or fp16"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_what_does(name: str, shape: tuple[int, ...], message: str) -> None:
    encoding = Encoding.parse(name)
    for size in (encoding.check, encoding.data_bytes, encoding.scale_bytes, encoding.nbytes):
        with pytest.raises(EncodingError) as refused:
            size(shape)
        assert str(refused.value) == message
    with pytest.raises(EncodingError) as refused:
        encoding.pack(np.zeros(shape, np.int8))
    assert str(refused.value) == message


def test_integers_out_of_range_are_refused_not_wrapped() -> None:
    with pytest.raises(EncodingError, match=r"^integers from 0 to 8 do not fit int4; expected -8 to 7$"):
        Encoding.parse("int4").pack(np.array([[0, 8]], np.int8))


def test_stored_bytes_of_the_wrong_size_are_refused() -> None:
    encoding = Encoding.parse("int4")
    with pytest.raises(EncodingError) as refused:
        encoding.unpack(bytes(7), (2, 8))
    assert str(refused.value) == "found 7 bytes for int4 of shape [2, 8], expected 8; convert the model again"
    with pytest.raises(EncodingError) as refused:
        encoding.dequantize(bytes(8), np.ones(3, np.float32), (2, 8))
    assert (
        str(refused.value)
        == "found scales of shape [3] for int4 of shape [2, 8], expected [2]; convert the model again"
    )


@pytest.mark.parametrize("dtype", [np.int8, np.float32])
def test_a_rest_is_an_eighth_of_the_step_around_its_integer(dtype: type[np.number]) -> None:
    integers, rests = (found.reshape(1, -1) for found in np.mgrid[-7:8, 0:8])
    found = with_rests(integers.astype(dtype), rests.astype(np.int8))
    inside = integers + (rests - 3.5) / 8
    outside = integers + np.sign(integers) * 0.5 + (rests - 3.5) / 4  # twice as wide a step, outwards
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.where(abs(integers) == 7, outside, inside))
    encoding = Encoding.parse("head+3")
    np.testing.assert_array_equal(encoding.unpack(encoding.pack(rests.astype(np.int8)), rests.shape), rests)
