"""Vision encoders of random tiny configurations against timm: the graph, LiteRT and ONNX.

Each kind of block alone between the stem and the fusion, then the small network of tools/tiny_towers.py, which is built
by timm as well.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gemma_edge.converter.graph import reference
from gemma_edge.converter.graph.ops import Graph
from gemma_edge.converter.models import vision
from gemma_edge.converter.models.gemma4_encoders.settings import MediaSettings
from gemma_edge.converter.quantize.recipes import Recipe
from gemma_edge.converter.tensors import TensorSpec
from tests.converter.litert import tflite_runs
from tests.converter.onnx import onnx_runs
from tools import tiny_towers
from tools.audio_oracle import relative_error
from tools.vision_oracle import VisionOracle, random_images

TOLERANCE = 1e-5

pytestmark = pytest.mark.usefixtures("timm")

Floats = NDArray[np.float32]

EDGE, BOTTLENECK, ATTENTION = tiny_towers.EDGE, tiny_towers.BOTTLENECK, tiny_towers.ATTENTION
PLAIN = BOTTLENECK | {"out_chs": 16, "exp_ratio": 1.0}  # timm cannot end a stage with attention
LAST = [BOTTLENECK | {"out_chs": 24, "exp_ratio": 2.0, "stride": 2, "dw_kernel_size_mid": 3}]


def stages(*blocks: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The blocks in the last stage but one, behind one that halves."""
    return [[EDGE | {"out_chs": 16, "exp_ratio": 2.0, "stride": 2}, *blocks], LAST]


@dataclass(frozen=True)
class Case:
    """A network and the size of its images."""

    block_args: list[list[dict[str, Any]]]
    pixels: int = 40
    side: int = 5
    stem: int = 8


CASES: Mapping[str, Case] = {
    "edge": Case(stages(EDGE | {"out_chs": 16, "exp_ratio": 4.0}, EDGE | {"out_chs": 24, "exp_ratio": 1.0})),
    "edge with a kernel of 5": Case(stages(EDGE | {"out_chs": 16, "exp_ratio": 2.0, "exp_kernel_size": 5})),
    "bottleneck with the first convolution": Case(
        stages(BOTTLENECK | {"out_chs": 16, "exp_ratio": 4.0, "dw_kernel_size_start": 5})
    ),
    "bottleneck with both, not residual": Case(
        stages(BOTTLENECK | {"out_chs": 32, "exp_ratio": 3.0, "dw_kernel_size_start": 3, "dw_kernel_size_mid": 5})
    ),
    "bottleneck that halves with the first": Case(
        [stages()[0], [BOTTLENECK | {"out_chs": 24, "exp_ratio": 2.0, "stride": 2, "dw_kernel_size_start": 5}]]
    ),
    "bottleneck without a convolution": Case(stages(PLAIN)),
    "attention": Case(
        stages(ATTENTION | {"out_chs": 16, "num_heads": 3, "key_dim": 8, "value_dim": 8, "kv_stride": 1}, PLAIN)
    ),
    "attention to a smaller image": Case(
        stages(
            ATTENTION
            | {"out_chs": 16, "num_heads": 1, "key_dim": 24, "value_dim": 24, "kv_stride": 2, "dw_kernel_size": 5},
            PLAIN,
        )
    ),
    "no pooling": Case(stages(), pixels=32, side=8),
    "pooling by 5": Case(stages(), pixels=40, side=2, stem=24),
    "all": Case(tiny_towers.BLOCKS, tiny_towers.IMAGE_PIXELS, 3, 16),
}


def squares(pixels: int) -> MediaSettings:
    return MediaSettings({"size": {"height": pixels, "width": pixels}}, "preprocessor_config.json")


@dataclass(frozen=True)
class Encoder:
    """One encoder: timm's and ours."""

    oracle: VisionOracle
    config: vision.Config

    @classmethod
    def of(cls, case: Case, seed: int = 0) -> "Encoder":
        arguments = {"block_args": case.block_args, "stem_size": case.stem, "msfa_output_resolution": case.side}
        whole = deepcopy(tiny_towers.config_json()) | {"vision_soft_tokens_per_image": case.side**2}
        whole["vision_config"]["model_args"] = arguments
        config = vision.Config.from_json(whole, squares(case.pixels))
        generator = torch.Generator().manual_seed(seed)
        oracle = VisionOracle.of(whole, lambda name, shape: tiny_towers.random_tower_values(name, shape, generator))
        return cls(oracle, config)

    @cached_property
    def specs(self) -> dict[str, TensorSpec]:
        return {spec.name: spec for spec in vision.tensors(self.config)}

    @cached_property
    def weights(self) -> dict[str, Floats]:
        """By the graph's names, folded and derived."""
        stored = {name: parameter.detach().numpy() for name, parameter in self.oracle.parameters().items()}
        return {spec.name: _value(spec, stored) for spec in self.specs.values()}

    def graphs(self, in_one: bool) -> dict[str, Graph]:
        return {graph.name: graph for graph in vision.graphs(self.config, self.specs, in_one)}

    def images(self, count: int = 1, seed: int = 0) -> Floats:
        return random_images(count, self.config.image_size, seed)


def _value(spec: TensorSpec, stored: Mapping[str, Floats]) -> Floats:
    sources = [stored[part.source] for part in spec.stored]
    assert [source.shape for source in sources] == [part.shape for part in spec.stored]
    if spec.derivation is None:
        return spec.fold(sources[0].reshape(spec.shape).copy())
    return spec.derivation.compute(*sources).reshape(spec.shape)


@cache
def tiny(name: str) -> Encoder:
    return Encoder.of(CASES[name])


@pytest.fixture(params=CASES)
def encoder(request: pytest.FixtureRequest, timm: None) -> Encoder:  # noqa: ARG001  before anything is built
    return tiny(request.param)


def used(graph: Graph, encoder: Encoder) -> dict[str, Floats]:
    return {name: encoder.weights[name] for name in graph.used}


def encodings(graph: Graph, precision: str) -> dict[str, str]:
    recipe = Recipe.named(precision)
    return {name: recipe.encoding(spec).name for name, spec in graph.used.items()}


class LiteRT:
    """The sections, run one after the other as LiteRT-LM does."""

    def __init__(self, encoder: Encoder, precision: str = "fp32") -> None:
        self._sessions = {
            name: tflite_runs.Session.of(
                tflite_runs.fill([graph], used(graph, encoder), encodings(graph, precision)).content
            )
            for name, graph in encoder.graphs(in_one=False).items()
        }

    def encode(self, image: Floats) -> Floats:
        """[1, 3, H, W] -> [1, N, 2048]."""
        images = np.ascontiguousarray(image.transpose(0, 2, 3, 1))
        features: Floats = self._sessions["vision_encoder"].run("vision_encoder", {"images": images})["features"]
        return features

    def embed(self, image: Floats) -> Floats:
        """[1, 3, H, W] -> [1, N + 1, D]."""
        features = {"features": self.encode(image)}
        rows: Floats = self._sessions["vision_adapter"].run("vision_adapter", features)["mm_embedding"]
        return rows


def onnx(encoder: Encoder, folder: Path, precision: str = "fp32") -> onnx_runs.Session:
    [graph] = encoder.graphs(in_one=True).values()
    weights = used(graph, encoder)
    return onnx_runs.Session.of(
        onnx_runs.fill(graph, weights, encodings(graph, precision), folder, many_rows=True).path
    )


# ---------------------------------------------------------------- fp32


def test_every_tensor_of_timm_is_described(encoder: Encoder) -> None:
    described = {part.source: part.shape for spec in encoder.specs.values() for part in spec.stored}
    assert described == {name: tuple(p.shape) for name, p in encoder.oracle.parameters().items()}


def test_the_graph_computes_what_timm_does(encoder: Encoder) -> None:
    """In float64: what is left is timm's own rounding."""
    graphs = encoder.graphs(in_one=False)
    weights = {name: value.astype(np.float64) for name, value in encoder.weights.items()}
    image = encoder.images()
    inputs = {"images": image.transpose(0, 2, 3, 1).astype(np.float64)}
    features = reference.run(graphs["vision_encoder"], weights, inputs, {})["features"]
    assert relative_error(features, encoder.oracle.encode(image)) < TOLERANCE
    rows = reference.run(graphs["vision_adapter"], weights, {"features": features}, {})["mm_embedding"][0]
    assert relative_error(rows[:-1], encoder.oracle.embed(image)[0]) < TOLERANCE
    end = encoder.oracle.hard(tiny_towers.config_json()["eoi_token_id"])
    np.testing.assert_allclose(rows[-1], end, rtol=0, atol=TOLERANCE)


def test_litert_gives_timms_features_and_embeddings(encoder: Encoder) -> None:
    litert = LiteRT(encoder)
    for seed in (1, 2):
        image = encoder.images(seed=seed)
        assert relative_error(litert.encode(image), encoder.oracle.encode(image)) < TOLERANCE
        assert relative_error(litert.embed(image)[:, :-1], encoder.oracle.embed(image)) < TOLERANCE


def test_onnx_gives_timms_embeddings_for_a_batch(encoder: Encoder, tmp_path: Path) -> None:
    images = encoder.images(3)
    found = onnx(encoder, tmp_path).run({"pixel_values": images})["image_features"]
    expected = encoder.oracle.embed(images)
    assert found.shape == expected.shape
    for row, expected_row in zip(found, expected, strict=True):
        assert relative_error(row, expected_row) < TOLERANCE


# ---------------------------------------------------------------- fewer bits


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_xnnpack_takes_all_of_it(precision: str) -> None:
    encoder = tiny("all")
    for name, graph in encoder.graphs(in_one=False).items():
        filled = tflite_runs.fill([graph], used(graph, encoder), encodings(graph, precision))
        delegation = tflite_runs.Delegation.of(filled.content)
        assert delegation.partitions == 1, name
        assert not delegation.outside, (name, delegation.outside)


@pytest.mark.parametrize(("precision", "bound"), [("fp16", 2e-3), ("int8", 0.1), ("int4", 0.1)])
def test_error_of_stored_weights(precision: str, bound: float, tmp_path: Path) -> None:
    """Random weights, so far from what training makes robust. Both containers, and neither exact: bits were saved."""
    encoder = tiny("all")
    image = encoder.images(seed=3)
    expected = encoder.oracle.embed(image)
    errors = {
        "litert": relative_error(LiteRT(encoder, precision).embed(image)[:, :-1], expected),
        "onnx": relative_error(
            onnx(encoder, tmp_path, precision).run({"pixel_values": image})["image_features"], expected
        ),
    }
    assert all(TOLERANCE < error < bound for error in errors.values()), errors


def test_int8_keeps_kernels_and_vectors_as_floats() -> None:
    encoder = tiny("all")
    [graph] = encoder.graphs(in_one=True).values()
    found = encodings(graph, "int8")
    kinds = {(len(spec.shape), found[name]) for name, spec in graph.used.items() if spec.values > 4096}
    assert kinds == {(2, "int8"), (4, "fp16")}
    assert {found[name] for name, spec in graph.used.items() if len(spec.shape) == 1} == {"fp32"}
