"""The ops of graph/conv_ops.py in LiteRT and ONNX Runtime against converter/graph/reference.py."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gemma_edge.converter.graph import reference
from gemma_edge.converter.graph.conv import average_pool, channels_last, conv2d, depthwise, multi_query_attention
from gemma_edge.converter.graph.conv_ops import UNPADDED, Padding, Pair, same
from gemma_edge.converter.graph.ops import Graph, Value
from gemma_edge.converter.tensors import Role, TensorSpec
from tests.converter.litert import tflite_runs
from tests.converter.onnx import onnx_runs

TOLERANCE = 1e-5  # relative to the largest result

Floats = NDArray[np.float32]

# (kernel, stride, padding) for images of 9 x 12
PLACES: list[tuple[Pair, Pair, Padding]] = [
    ((3, 3), (1, 1), same((9, 12), 3, 1)),
    ((3, 3), (2, 2), same((9, 12), 3, 2)),
    ((5, 5), (2, 2), same((9, 12), 5, 2)),
    ((3, 3), (2, 2), ((0, 2), (1, 1))),
    ((3, 3), (2, 2), ((1, 0), (1, 0))),
    ((2, 5), (3, 1), ((0, 1), (2, 2))),
    ((3, 2), (1, 2), UNPADDED),
]


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def spec(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, name, shape, Role.KERNEL if len(shape) == 4 else Role.NORM)


def check(g: Graph, out: Value, weights: dict[str, Floats], folder: Path, encoding: str = "fp32") -> None:
    """The graph's one output, in both runtimes, is the reference's."""
    g.output("y", out)
    inputs: dict[str, NDArray[Any]] = {name: normal(*value.shape, seed=7) for name, value in g.inputs.items()}
    encodings = {name: encoding if len(w.shape) == 4 else "fp32" for name, w in weights.items()}
    filled = tflite_runs.fill([g], weights, encodings)
    expected = reference.run(g, filled.weights, inputs, {})["y"]
    assert expected.shape == out.shape
    found = {
        "litert": tflite_runs.Session.of(filled.content).run(g.name, inputs)["y"],
        "onnx": onnx_runs.Session.of(onnx_runs.fill(g, weights, encodings, folder).path).run(inputs)["y"],
    }
    for runtime, y in found.items():
        np.testing.assert_allclose(y, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max(), err_msg=runtime)
    assert tflite_runs.Delegation.of(filled.content).partitions == 1
    assert not tflite_runs.Delegation.of(filled.content).outside


@pytest.mark.parametrize("encoding", ["fp32", "fp16"])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "padding"), PLACES)
def test_convolution(
    kernel: Pair, stride: Pair, padding: Padding, has_bias: bool, encoding: str, tmp_path: Path
) -> None:
    weights = {"w": normal(6, *kernel, 4), "b": normal(6, seed=1)}
    g = Graph("convolution", 1, {name: spec(name, *value.shape) for name, value in weights.items()})
    y = conv2d(g, g.input("x", (1, 9, 12, 4)), "w", stride, padding, "b" if has_bias else None)
    check(g, y, {name: weights[name] for name in g.used}, tmp_path, encoding)


@pytest.mark.parametrize("encoding", ["fp32", "fp16"])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [p for p in PLACES if p[1][0] == p[1][1]])
def test_depthwise_convolution(kernel: Pair, stride: Pair, padding: Padding, encoding: str, tmp_path: Path) -> None:
    """With one stride for both ways: TFLite's own kernels know no other."""
    weights = {"w": normal(1, *kernel, 8)}
    g = Graph("depthwise", 1, {"w": spec("w", *weights["w"].shape)})
    check(g, depthwise(g, g.input("x", (1, 9, 12, 8)), "w", stride, padding), weights, tmp_path, encoding)


@pytest.mark.parametrize("size", [2, 3])
def test_average_pool(size: int, tmp_path: Path) -> None:
    g = Graph("pool", 1, {})
    check(g, average_pool(g, g.input("x", (1, 6, 12, 8)), size), {}, tmp_path)


def test_pooling_single_places_is_nothing() -> None:
    g = Graph("pool", 1, {})
    x = g.input("x", (1, 6, 12, 8))
    assert average_pool(g, x, 1) is x
    assert not g.ops


def test_multi_query_attention(tmp_path: Path) -> None:
    g = Graph("attention", 1, {})
    q, k, v = (g.input(name, (1, rows, 16)) for name, rows in (("q", 30), ("k", 7), ("v", 7)))
    check(g, multi_query_attention(g, q, k, v), {}, tmp_path)


def test_channels_last(tmp_path: Path) -> None:
    g = Graph("layout", 1, {})
    check(g, g.gelu(channels_last(g, g.input("x", (1, 3, 5, 4)))), {}, tmp_path)


@pytest.mark.parametrize(
    ("length", "kernel", "stride", "zeros"),
    [(8, 3, 1, (1, 1)), (8, 3, 2, (0, 1)), (9, 3, 2, (1, 1)), (8, 5, 2, (1, 2)), (9, 5, 2, (2, 2)), (8, 1, 2, (0, 0))],
)
def test_same_is_tensorflows(length: int, kernel: int, stride: int, zeros: Pair) -> None:
    """timm's Conv2dSame: max((ceil(length / stride) - 1) * stride + kernel - length, 0), less of it in front."""
    assert same((length, length), kernel, stride) == (zeros, zeros)
