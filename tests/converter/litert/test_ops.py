"""Every op and every encoding in LiteRT against graph/reference.py, and where things lie in the file."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from gemma_edge.converter.graph import draft, reference
from gemma_edge.converter.graph import ops as ir
from gemma_edge.converter.graph.ops import Graph
from gemma_edge.converter.litert.file import ALIGNMENT
from gemma_edge.converter.litert.lower import LOWER
from gemma_edge.converter.quantize import stored
from gemma_edge.converter.tensors import Role, StaticScales, TensorSpec
from tests.converter.graph.op_builders import BUILDERS, SHAPE
from tests.converter.litert.tflite_runs import Filled, Session, fill

ROWS, COLUMNS, TOKENS = 200, 256, 3
PER_ROW = ("fp32", "fp16", "int8", "int4", "int2")
BLOCKWISE = ("int4-b32", "int4-b64", "int4-b128", "int4-b256")
FLOAT = 1e-5  # relative to the sum of the magnitudes that are added: float32 in another order of summation

Floats = NDArray[np.float32]


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def exact_activations(*shape: int) -> Floats:
    """Integers from -128 to 127, with both in every row: what dynamic int8 quantization of a row stores exactly."""
    x = np.random.default_rng(1).integers(-128, 128, shape).astype(np.float32)
    x[..., 0], x[..., -1] = -128, 127
    return x


def spec(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, name, shape, Role.FFN if len(shape) == 2 else Role.NORM)


def linear(encoding: str, weight: Floats, name: str = "linear") -> Filled:
    g = Graph(name, TOKENS, {"w": spec("w", *weight.shape)})
    g.output("y", g.linear(g.input("x", (1, TOKENS, weight.shape[1])), "w"))
    return fill([g], {"w": weight}, {"w": encoding})


def embed(encoding: str, table: Floats, ids: int) -> tuple[Graph, Filled]:
    g = Graph("embed", 1, {"table": spec("table", *table.shape)})
    g.output("rows", g.embed(g.input("ids", (1, ids), "int32"), "table"))
    return g, fill([g], {"table": table}, {"table": encoding})


def test_every_op_is_spelled() -> None:
    assert set(LOWER) == set(ir.OPS)


# ---------------------------------------------------------------- ops

ONES = {"w": np.ones(8, np.float32)}


@pytest.mark.parametrize("name", BUILDERS)
def test_op_equals_the_reference(name: str) -> None:
    g = Graph("op", 6, {"w": spec("w", 8)})
    g.output("y", BUILDERS[name](g, g.input("a", SHAPE), g.input("b", SHAPE)))
    weights = {"w": normal(8, seed=2)}
    inputs = {"a": normal(*SHAPE), "b": normal(*SHAPE, seed=1)}
    filled = fill([g], weights, dict.fromkeys(weights, "fp32"))
    found = Session.of(filled.content).run("op", inputs)["y"]
    expected = reference.run(g, weights, inputs, {})["y"]
    assert found.shape == expected.shape
    # XNNPACK's tanh, gelu and rsqrt are approximations, good to a few units in the last place.
    np.testing.assert_allclose(found, expected, rtol=FLOAT, atol=FLOAT)


@pytest.mark.parametrize("encoding", PER_ROW)
def test_logits_of_clusters(encoding: str) -> None:
    table, tokens = normal(24, 32, seed=3), np.random.default_rng(4).permutation(24).astype(np.int32).reshape(6, 4)
    g = Graph("clusters", 1, {"table": spec("table", *table.shape)})
    x, clusters = g.input("x", (1, 1, 32)), g.input("clusters", (1, 1, 6))
    g.output("logits", draft.cluster_logits(g, x, clusters, "table", tokens, 2))
    filled = fill([g], {"table": table}, {"table": encoding})
    inputs = {"x": normal(1, 1, 32), "clusters": normal(1, 1, 6, seed=1)}
    found = Session.of(filled.content).run("clusters", inputs)["logits"]
    expected = reference.run(g, filled.weights, inputs, {})["logits"]
    chosen = expected > expected.min()
    assert chosen.sum() == 2 * 4
    np.testing.assert_allclose(found[chosen], expected[chosen], rtol=FLOAT, atol=32 * FLOAT)
    assert found[~chosen].max() < found[chosen].min()


# ---------------------------------------------------------------- encodings


@pytest.mark.parametrize("encoding", [*PER_ROW, *BLOCKWISE])
def test_linear_in_every_encoding(encoding: str) -> None:
    """With activations that survive the rounding to int8, only the order of summation differs."""
    filled = linear(encoding, normal(ROWS, COLUMNS))
    x = exact_activations(1, TOKENS, COLUMNS)
    found = Session.of(filled.content).run("linear", {"x": x})["y"]
    weight = filled.weights["w"].astype(np.float64)
    bound = FLOAT * (np.abs(x).astype(np.float64) @ np.abs(weight).T)
    assert (np.abs(found - x @ weight.T) <= bound).all()


@pytest.mark.parametrize("encoding", PER_ROW)
@pytest.mark.parametrize("split_bytes", [stored.SPLIT_BYTES, 1 << 12])
def test_linear_on_static_levels(encoding: str, split_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of scales that are powers of two: integers of 8 bits by integers, to the last bit, also where rows are cut."""
    monkeypatch.setattr(stored, "SPLIT_BYTES", split_bytes)
    weight = np.random.default_rng(3).choice([-1.0, 0.0, 1.0], (ROWS, COLUMNS)).astype(np.float32)
    g = Graph("linear", TOKENS, {"w": replace(spec("w", ROWS, COLUMNS), static=StaticScales(2.0**-5, 2.0**-1))})
    g.output("y", g.linear(g.input("x", (1, TOKENS, COLUMNS)), "w"))
    filled = fill([g], {"w": weight}, {"w": encoding})
    x = 2 * normal(1, TOKENS, COLUMNS, seed=4)
    found = Session.of(filled.content).run("linear", {"x": x})["y"]
    expected = reference.run(g, filled.weights, {"x": x}, {})["y"]
    assert np.unique(expected).size > 50
    bound = 0.0 if encoding in ("fp32", "fp16") else 2.0**-1  # a row's scale is no power of two
    assert np.count_nonzero(found != expected) <= 0.01 * expected.size
    assert np.abs(found - expected).max() <= bound


@pytest.mark.parametrize("encoding", ["int8", "int4", *BLOCKWISE])
def test_activations_are_rounded_to_int8_and_no_coarser(encoding: str) -> None:
    """Each of a row's activations is off by at most half of (largest - smallest) / 255, and some really are."""
    filled = linear(encoding, normal(ROWS, COLUMNS))
    x = normal(1, TOKENS, COLUMNS, seed=1)
    found = Session.of(filled.content).run("linear", {"x": x})["y"]
    weight = filled.weights["w"].astype(np.float64)
    half_step = (x.max(-1, keepdims=True) - x.min(-1, keepdims=True)) / 255 / 2
    bound = half_step * np.abs(weight).sum(1) * (1 + 1e-3)  # the zero point is an integer too: float32 of it all
    error = np.abs(found - x @ weight.T)
    assert (error <= bound).all()
    assert error.max() > 10 * FLOAT * np.abs(x @ weight.T).max()


@pytest.mark.parametrize("encoding", PER_ROW)
def test_embed_in_every_encoding(encoding: str) -> None:
    """Rows come out as they are stored, to the last bit; ids that are no row read row 0."""
    ids = np.array([[0, 1, ROWS - 1, ROWS, 10**6, 2**31 - 1, -1, -ROWS, -(2**31), 7]], np.int32)
    graph, filled = embed(encoding, normal(ROWS, COLUMNS), ids.shape[1])
    found = Session.of(filled.content).run("embed", {"ids": ids})["rows"]
    expected = reference.run(graph, filled.weights, {"ids": ids}, {})["rows"]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found[0, 3:9], np.repeat(found[:1, 0], 6, axis=0))


# ---------------------------------------------------------------- row slices


@pytest.mark.parametrize("row_bytes", [1, 63, 64, 1152, 2048, 65_536, 3_000_000])
@pytest.mark.parametrize("rows", [1, 63, 64, 65, 1000, 16_384, 262_144])
def test_row_slices_cover_all_rows_in_aligned_pieces(rows: int, row_bytes: int) -> None:
    slices = stored.row_slices(rows, row_bytes)
    assert slices[0][0] == 0
    assert slices[-1][1] == rows
    assert all(last == first for (_, last), (first, _) in pairwise(slices))
    assert all(first < last and first % 64 == 0 for first, last in slices)
    largest = max(last - first for first, last in slices) * row_bytes
    assert largest <= stored.SPLIT_BYTES + 64 * row_bytes  # rounding up to 64 rows
    assert (len(slices) == 1) == (rows * row_bytes <= stored.SPLIT_BYTES or rows <= 64)


@pytest.mark.parametrize("encoding", ["fp32", "fp16", "int8", "int4", "int4-b32", "int2"])
def test_a_split_linear_gives_the_same_numbers(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = normal(ROWS, COLUMNS)
    x = {"x": normal(1, TOKENS, COLUMNS, seed=1)}
    whole = linear(encoding, weight)
    monkeypatch.setattr(stored, "SPLIT_BYTES", 4096)
    split = linear(encoding, weight)
    assert [_count(filled, "FULLY_CONNECTED") for filled in (whole, split)] == [1, 4]  # 64, 64, 64 and 8 rows
    found, expected = (Session.of(filled.content).run("linear", x)["y"] for filled in (split, whole))
    np.testing.assert_allclose(found, expected, rtol=0, atol=FLOAT * np.abs(expected).max())
    assert whole.file.weights["w"].weight == split.file.weights["w"].weight


def _count(filled: Filled, op: str) -> int:
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(filled.content, 0))
    codes = [code.builtinCode for code in model.operatorCodes]
    return sum(codes[o.opcodeIndex] == getattr(schema.BuiltinOperator, op) for o in model.subgraphs[0].operators)


# ---------------------------------------------------------------- the file


def _two_signatures() -> Filled:
    specs = {"w": spec("w", 100, 64), "b": spec("b", 100), "t": spec("t", 33, 96)}
    graphs = []
    for name, tokens in (("decode", 1), ("prefill_4", 4)):
        g = Graph(name, tokens, specs)
        y = g.add(g.linear(g.input("x", (1, tokens, 64)), "w"), g.weight("b"))
        g.output("y", y)
        g.output("row", g.embed(g.input("ids", (1, 1), "int32"), "t"))
        graphs.append(g)
    weights = {"w": normal(100, 64), "b": normal(100), "t": normal(33, 96)}
    return fill(graphs, weights, {"w": "int4-b32", "b": "fp32", "t": "int8"})


def test_weights_lie_behind_the_root_aligned_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "SPLIT_BYTES", 1024)  # w is 3200 bytes: two slices
    filled = _two_signatures()
    model = schema.Model.GetRootAs(filled.content, 0)
    buffers = [model.Buffers(i) for i in range(model.BuffersLength())]
    outside = sorted((buffer.Offset(), buffer.Size()) for buffer in buffers if buffer.Size())
    assert len(outside) == 2 + 2 + 1 + 1  # slices of w, of its scales, b, t: not twice for two signatures
    assert all(offset % ALIGNMENT == 0 for offset, _ in outside)
    end = len(filled.file.root())
    for offset, size in outside:
        assert end <= offset < end + ALIGNMENT
        end = offset + size
    assert end == len(filled.content)


def test_the_root_keeps_its_size_when_offsets_and_scales_are_known() -> None:
    filled = _two_signatures()
    finished = filled.file.root()
    assert np.abs(filled.file.weights["t"].row_scales).min() > 0
    for placed in filled.file.weights.values():
        placed.row_scales[:] = 0
    for buffer, *_ in filled.file._regions:
        buffer.offset = 1 << 40
    assert len(filled.file.root()) == len(finished)
    assert filled.file.root() != finished
    assert filled.file.lay_out() == len(filled.content)


def test_signatures_share_weights() -> None:
    filled = _two_signatures()
    session = Session.of(filled.content)
    x, ids = normal(1, 4, 64), np.array([[5]], np.int32)
    together = session.run("prefill_4", {"x": x, "ids": ids})
    for i in range(4):
        alone = session.run("decode", {"x": x[:, i : i + 1], "ids": ids})
        np.testing.assert_allclose(alone["y"], together["y"][:, i : i + 1], rtol=0, atol=1e-5)
        np.testing.assert_array_equal(alone["row"], together["row"])
