"""Audio encoders of random tiny configurations against transformers: the graph, LiteRT and ONNX.

A clip that is alone ends where its frames end. That is what LiteRT's fixed graph has to give, whatever stands in the
frames behind the mask; in ONNX, a batch with padding is transformers' too, padding and all.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gemma_edge.converter.graph import reference
from gemma_edge.converter.graph.ops import Graph
from gemma_edge.converter.models import audio
from gemma_edge.converter.quantize.recipes import Recipe
from tests.converter.litert import tflite_runs
from tests.converter.models.audio_oracle import CONFIGS, EMBEDDINGS, TEXT_WIDTH, Encoder
from tests.converter.onnx import onnx_runs
from tools.audio_oracle import loud_and_quiet, relative_error, valid_frames

TOLERANCE = 1e-5

Floats = NDArray[np.float32]


@cache
def tiny(name: str) -> Encoder:
    return Encoder.of(CONFIGS[name])


@pytest.fixture(params=CONFIGS)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return tiny(request.param)


def mel(encoder: Encoder, clips: int = 1, seed: int = 0) -> Floats:
    return loud_and_quiet(clips, encoder.config.frames, encoder.config.mel_bins, seed)


def lengths(encoder: Encoder) -> list[int]:
    """Full, one frame, and one of each remainder by what an embedding stands for."""
    step = encoder.config.frames // EMBEDDINGS
    return [encoder.config.frames, 1, *range(2 * step, 3 * step)]


def used(graph: Graph, encoder: Encoder) -> dict[str, Floats]:
    return {name: encoder.weights[name] for name in graph.used}


def encodings(graph: Graph, precision: str) -> dict[str, str]:
    recipe = Recipe.named(precision)
    return {name: recipe.encoding(spec).name for name, spec in graph.used.items()}


class LiteRT:
    """The sections, run one after the other as LiteRT-LM does."""

    def __init__(self, encoder: Encoder, precision: str = "fp32") -> None:
        graphs = audio.graphs(encoder.config, encoder.specs, in_one=False)
        self.contents = {
            g.name: tflite_runs.fill([g], used(g, encoder), encodings(g, precision)).content for g in graphs
        }
        self._sessions = {name: tflite_runs.Session.of(content) for name, content in self.contents.items()}

    def run(self, name: str, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return self._sessions[name].run(name, inputs)

    def embed(self, frames: Floats, valid: NDArray[np.bool_]) -> Floats:
        """[1, T, F], [1, T] -> [1, N, text width]."""
        encoded = self.run("audio_encoder", src_inputs=frames, mask=valid)
        found: Floats = self.run("audio_adapter", **encoded)["mm_embedding"]
        return found


def onnx(encoder: Encoder, folder: Path, precision: str = "fp32") -> onnx_runs.Session:
    [graph] = audio.graphs(encoder.config, encoder.specs, in_one=True)
    filled = onnx_runs.fill(graph, used(graph, encoder), encodings(graph, precision), folder, many_rows=True)
    return onnx_runs.Session.of(filled.path)


# ---------------------------------------------------------------- parity


def test_the_graph_is_transformers(encoder: Encoder) -> None:
    """In float32 and without an emitter. The reference walks each step: one length is enough."""
    graph = next(audio.graphs(encoder.config, encoder.specs, in_one=False))
    frames, count = mel(encoder), encoder.config.frames - 11
    inputs: Mapping[str, NDArray[Any]] = {"src_inputs": frames, "mask": valid_frames(count, encoder.config.frames)}
    found = reference.run(graph, encoder.weights, inputs, {})
    features, valid = encoder.oracle.encode(frames[:, :count], valid_frames(count, count))
    np.testing.assert_array_equal(found["mask"], valid_frames(valid.shape[1], EMBEDDINGS))
    assert relative_error(found["features"][:, : valid.shape[1]], features) <= TOLERANCE
    assert not found["features"][:, valid.shape[1] :].any()


def test_litert_gives_what_a_clip_alone_gives(encoder: Encoder) -> None:
    litert = LiteRT(encoder)
    for count in lengths(encoder):
        frames = mel(encoder, seed=count)
        expected = encoder.oracle.embed(frames[:, :count], valid_frames(count, count))
        frames[:, count:] = 1e3  # must not matter
        valid = valid_frames(count, encoder.config.frames)
        encoded = litert.run("audio_encoder", src_inputs=frames, mask=valid)
        step = encoder.config.frames // EMBEDDINGS
        np.testing.assert_array_equal(encoded["mask"], valid_frames(-(-count // step), EMBEDDINGS))
        assert relative_error(litert.embed(frames, valid), expected) <= TOLERANCE, count


def test_onnx_gives_what_a_clip_alone_gives(encoder: Encoder, tmp_path: Path) -> None:
    session = onnx(encoder, tmp_path)
    for count in lengths(encoder):
        frames, valid = mel(encoder, seed=count)[:, :count], valid_frames(count, count)
        found = session.run({"input_features": frames, "input_features_mask": valid})["audio_features"]
        assert found.shape == (1, EMBEDDINGS, TEXT_WIDTH)
        assert relative_error(found, encoder.oracle.embed(frames, valid)) <= TOLERANCE, count


def test_onnx_gives_what_a_padded_batch_gives(encoder: Encoder, tmp_path: Path) -> None:
    """The convolutions see the padding, attention does not: so says transformers."""
    longest = encoder.config.frames - 5
    valid = np.concatenate([valid_frames(count, longest) for count in (longest, longest // 2 + 1, 3)])
    frames = mel(encoder, clips=3)[:, :longest]
    session = onnx(encoder, tmp_path)
    found = session.run({"input_features": frames, "input_features_mask": valid})["audio_features"]
    assert relative_error(found, encoder.oracle.embed(frames, valid)) <= TOLERANCE


def test_the_end_of_a_clip_is_a_constant(encoder: Encoder) -> None:
    found = LiteRT(encoder).run("end_of_audio")["eoa_embedding"]
    assert found.shape == (1, 1, TEXT_WIDTH)
    expected = encoder.oracle.hard(encoder.config.embedder.vocab_offset + encoder.config.end_row)
    assert relative_error(found[0, 0], expected) <= TOLERANCE


def test_hard_tokens_lie_over_the_rows_of_their_ids(encoder: Encoder) -> None:
    embedder = encoder.config.embedder
    [overlay] = embedder.overlays()
    rows = overlay.derivation.compute(*(encoder.stored[stored.source] for stored in overlay.derivation.sources))
    ids = range(overlay.first_row, overlay.first_row + overlay.rows)
    assert (ids[0], ids[-1]) == (embedder.vocab_offset, embedder.text_vocab_size - 1)
    assert relative_error(rows, np.stack([encoder.oracle.hard(number) for number in ids])) <= TOLERANCE


# ---------------------------------------------------------------- precision and speed


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_xnnpack_takes_it_in_one_piece(precision: str) -> None:
    """But for the masks' conversions from and to booleans."""
    contents = LiteRT(tiny("official window"), precision).contents
    found = {name: tflite_runs.Delegation.of(contents[name]) for name in ("audio_encoder", "audio_adapter")}
    assert {name: delegation.partitions for name, delegation in found.items()} == dict.fromkeys(found, 1)
    assert dict(found["audio_encoder"].outside) == {"CAST": 2}
    assert dict(found["audio_adapter"].outside) == {"CAST": 1}


@pytest.mark.parametrize(("precision", "largest"), [("fp16", 2e-3), ("int8", 4e-2)])
def test_rounding_costs_something_and_not_much(precision: str, largest: float, tmp_path: Path) -> None:
    """Relative error of the embeddings; the int4 recipe stores the encoder as the int8 one."""
    encoder = tiny("official window")
    frames, valid = mel(encoder), valid_frames(encoder.config.frames, encoder.config.frames)
    expected = encoder.oracle.embed(frames, valid)
    inputs = {"input_features": frames, "input_features_mask": valid}
    found = LiteRT(encoder, precision).embed(frames, valid), onnx(encoder, tmp_path, precision).run(inputs)
    for embeddings in (found[0], found[1]["audio_features"]):
        assert largest / 100 < relative_error(embeddings, expected) < largest


def test_no_position_projection_reaches_a_device() -> None:
    """28 million parameters of the official encoder become 12 tables of 13 columns."""
    encoder = tiny("official window")
    name = "audio_tower.conformer.0.attention.attn.relative_position_embedding.pos_proj.weight"
    assert encoder.stored[name].shape == (64, 64)
    assert encoder.specs[name].shape == (1, 4, 16, 13)
