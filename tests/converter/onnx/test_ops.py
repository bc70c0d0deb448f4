"""Every op and every encoding in ONNX Runtime against graph/reference.py, and where things lie in data files."""

from pathlib import Path

import numpy as np
import onnx_ir
import pytest
from numpy.typing import NDArray

from gemma_edge.converter.graph import draft_ops, reference
from gemma_edge.converter.graph import ops as ir
from gemma_edge.converter.graph.ops import Graph, Rope
from gemma_edge.converter.litert import lower as tflite
from gemma_edge.converter.onnx import blocks
from gemma_edge.converter.onnx.lower import LOWER
from gemma_edge.converter.quantize import stored
from gemma_edge.converter.tensors import Role, TensorSpec
from gemma_edge.runtime.formats.encoding import Encoding, EncodingError
from tests.converter.graph.op_builders import BUILDERS, SHAPE
from tests.converter.onnx.onnx_runs import Filled, Session, fill

ROWS, COLUMNS, TOKENS = 200, 256, 3
ENCODINGS = ("fp32", "fp16", "int8", "int4", "int2", "int4-b32", "int4-b64", "int4-b128", "int4-b256")
FLOAT = 1e-5  # relative to the sum of the magnitudes that are added: float32 in another order of summation

Floats = NDArray[np.float32]


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def exact_activations(*shape: int) -> Floats:
    """Integers from -127 to 127, with 127 first in every 32: what int8 quantization of any block stores exactly."""
    x = np.random.default_rng(1).integers(-127, 128, shape).astype(np.float32)
    x[..., ::16] = 127
    return x


def spec(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, name, shape, Role.FFN if len(shape) == 2 else Role.NORM)


def linear(encoding: str, weight: Floats, folder: Path) -> Filled:
    g = Graph("linear", TOKENS, {"w": spec("w", *weight.shape)})
    g.output("y", g.linear(g.input("x", (1, TOKENS, weight.shape[1])), "w"))
    return fill(g, {"w": weight}, {"w": encoding}, folder)


def test_both_emitters_spell_every_op() -> None:
    assert set(tflite.LOWER) == set(ir.OPS)
    assert set(LOWER) == set(ir.OPS) - set(draft_ops.OPS)  # ONNX Runtime has no drafter beside a model


# ---------------------------------------------------------------- ops


@pytest.mark.parametrize("name", BUILDERS)
def test_op_equals_the_reference(name: str, tmp_path: Path) -> None:
    g = Graph("op", 6, {"w": spec("w", 8)})
    g.output("y", BUILDERS[name](g, g.input("a", SHAPE), g.input("b", SHAPE)))
    weights = {"w": normal(8, seed=2)}
    inputs = {"a": normal(*SHAPE), "b": normal(*SHAPE, seed=1)}
    found = Session.of(fill(g, weights, {"w": "fp32"}, tmp_path).path).run(inputs, tokens=6)["y"]
    expected = reference.run(g, weights, inputs, {})["y"]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=FLOAT, atol=FLOAT)


def attention(tokens: int, window: int | None) -> Graph:
    """Two layers on one cache of 2 KV heads: the owner, and one that shares. 4 query heads of 16."""
    g = Graph("attention", tokens, {})
    k, v = (g.input(name, (1, tokens, 2, 16)) for name in "kv")
    rope = Rope(10_000.0)
    cache = g.kv_cache(0, g.rotate(k, rope), v, window)
    for name in ("own", "shared"):
        g.output(name, g.attention(g.rotate(g.input(f"q_{name}", (1, tokens, 4, 16)), rope), cache))
    return g


@pytest.mark.parametrize("window", [None, 1, 5, 16])
def test_attention_in_chunks_equals_the_reference(window: int | None, tmp_path: Path) -> None:
    """Chunks shorter and longer than the window, one graph for all lengths."""
    session = Session.of(fill(attention(ir.ANY, window), {}, {}, tmp_path).path)
    past: reference.Past = {}
    for seed, tokens in enumerate((7, 1, 1, 20, 1, 3)):
        shapes = {"k": 2, "v": 2, "q_own": 4, "q_shared": 4}
        inputs = {
            name: normal(1, tokens, heads, 16, seed=seed * 10 + i) for i, (name, heads) in enumerate(shapes.items())
        }
        found = session.run(inputs, tokens)
        expected = reference.run(attention(tokens, window), {}, inputs, past)
        for name in ("own", "shared"):
            np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=FLOAT)


# ---------------------------------------------------------------- encodings


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_linear_in_every_encoding(encoding: str, tmp_path: Path) -> None:
    """With activations that survive the rounding to int8, only the order of summation differs."""
    filled = linear(encoding, normal(ROWS, COLUMNS), tmp_path)
    x = exact_activations(1, TOKENS, COLUMNS)
    found = Session.of(filled.path).run({"x": x})["y"]
    weight = filled.weights["w"].astype(np.float64)
    bound = FLOAT * (np.abs(x).astype(np.float64) @ np.abs(weight).T)
    assert (np.abs(found - x @ weight.T) <= bound).all()


@pytest.mark.parametrize("encoding", ["int8", "int4-b32"])
def test_linear_in_row_slices(encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of one matrix in the file give, side by side, what the whole matrix gives."""
    (tmp_path / "sliced").mkdir()
    whole = linear(encoding, normal(ROWS, COLUMNS), tmp_path)
    monkeypatch.setattr(stored, "SPLIT_BYTES", 16 << 10)
    sliced = linear(encoding, normal(ROWS, COLUMNS), tmp_path / "sliced")
    x = {"x": normal(1, TOKENS, COLUMNS, seed=1)}
    np.testing.assert_array_equal(Session.of(sliced.path).run(x)["y"], Session.of(whole.path).run(x)["y"])
    data, data_sliced = (path.with_name(f"{path.name}_data") for path in (whole.path, sliced.path))
    assert data.read_bytes() == data_sliced.read_bytes()
    assert sliced.path.read_bytes().count(b"MatMulNBits") > whole.path.read_bytes().count(b"MatMulNBits")


def test_linear_with_many_rows_is_a_product_of_integers(tmp_path: Path) -> None:
    """As encoders multiply: each row rounded with a scale of its own, so one of small numbers keeps them."""
    g = Graph("linear", TOKENS, {"w": spec("w", ROWS, COLUMNS)})
    g.output("y", g.linear(g.input("x", (1, TOKENS, COLUMNS)), "w"))
    filled = fill(g, {"w": normal(ROWS, COLUMNS)}, {"w": "int8"}, tmp_path, many_rows=True)
    [product] = (node for node in onnx_ir.load(filled.path).graph if node.op_type == "MatMulInteger")
    assert len(product.inputs) == 4  # unsigned weights and where their middle is: signed ones saturate on some machines
    x = exact_activations(1, TOKENS, COLUMNS)
    x[:, 1] *= 2.0**-20
    x[:, 2] = 0
    found = Session.of(filled.path).run({"x": x})["y"]
    weight = filled.weights["w"].astype(np.float64)
    bound = FLOAT * (np.abs(x).astype(np.float64) @ np.abs(weight).T)
    assert (np.abs(found - x @ weight.T) <= bound).all()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_rows_in_every_encoding(encoding: str, tmp_path: Path) -> None:
    """Exactly what is stored; an id outside the table reads row 0."""
    g = Graph("embed", ir.ANY, {"table": spec("table", ROWS, COLUMNS)})
    g.output("rows", g.embed(g.input("ids", (1, ir.ANY), "int32"), "table"))
    filled = fill(g, {"table": normal(ROWS, COLUMNS)}, {"table": encoding}, tmp_path)
    ids = np.array([[5, 0, ROWS - 1, ROWS, -1, 5]])
    found = Session.of(filled.path).run({"ids": ids})["rows"]
    np.testing.assert_array_equal(found[0], filled.weights["table"][[5, 0, ROWS - 1, 0, 0, 5]])


# ---------------------------------------------------------------- data files


def test_a_row_of_one_block_is_looked_up_without_repeating_its_scale() -> None:
    assert blocks.scale_block((10, 512), Encoding.parse("int4"), is_table=True) == 512
    assert blocks.scale_block((10, 7680), Encoding.parse("int4"), is_table=True) == 512
    assert blocks.scale_block((10, 2048), Encoding.parse("int8"), is_table=False) == 256
    assert blocks.scale_block((10, 2048), Encoding.parse("int4-b32"), is_table=False) == 32


def test_columns_that_no_block_fits() -> None:
    with pytest.raises(EncodingError) as caught:
        blocks.stored_bytes((10, 40), Encoding.parse("int8"), is_table=False)
    assert str(caught.value) == "40 columns do not split into blocks of 16, as int8 in ONNX does; use fp16 or fp32"
