"""Gemma 4's encoders of random tiny configurations against transformers: the graph, LiteRT and ONNX.

Images of every shape that the patches allow, a single token among them, and clips of every length: LiteRT's graphs are
of a fixed size, and what only pads must not matter.
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gemma_edge.converter.graph import reference
from gemma_edge.converter.models.gemma4_encoders import vision
from tests.converter.litert import tflite_runs
from tests.converter.models.gemma4_towers import AUDIO, EMBEDDINGS, END_ID, TABLE, TEXT_WIDTH, VISION, Tiny
from tests.converter.onnx import onnx_runs
from tools.audio_oracle import loud_and_quiet, relative_error, valid_frames
from tools.gemma4_towers_oracle import patch_positions

TOLERANCE = 1e-5
NOISE = 1e3  # where nothing must matter
FRAMES = 4 * EMBEDDINGS

Floats = NDArray[np.float32]
Shape = tuple[int, int]


@cache
def tiny(modality: str, name: str) -> Tiny:
    return Tiny.of(modality, (VISION if modality == "vision" else AUDIO)[name])


class LiteRT:
    """The sections, run one after the other as LiteRT-LM does."""

    def __init__(self, tower: Tiny, precision: str = "fp32") -> None:
        self.contents = {
            graph.name: tflite_runs.fill([graph], weights, encodings).content
            for graph, weights, encodings in tower.graphs(in_one=False, precision=precision)
        }
        self._sessions = {name: tflite_runs.Session.of(content) for name, content in self.contents.items()}

    def run(self, name: str, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return self._sessions[name].run(name, inputs)

    def embed_image(self, patches: Floats, positions: NDArray[np.int32]) -> Floats:
        encoded = self.run("vision_encoder", images=patches, positions_xy=positions)
        count = int(encoded["mask"].sum())
        np.testing.assert_array_equal(encoded["mask"], valid_frames(count, encoded["mask"].shape[1]))
        rows: Floats = self.run("vision_adapter", features=encoded["features"])["mm_embedding"][0, :count]
        return rows

    def embed_sound(self, mel: Floats, valid: NDArray[np.bool_]) -> Floats:
        encoded = self.run("audio_encoder", src_inputs=mel, mask=valid)
        rows = self.run("audio_adapter", **encoded)["mm_embedding"][0]
        count = -(-int(valid.sum()) // 4)
        np.testing.assert_array_equal(encoded["mask"], valid_frames(count, EMBEDDINGS))
        assert not rows[count:].any()
        found: Floats = rows[:count]
        return found


def onnx(tower: Tiny, folder: Path, precision: str = "fp32") -> onnx_runs.Session:
    [(graph, weights, encodings)] = tower.graphs(in_one=True, precision=precision)
    return onnx_runs.Session.of(onnx_runs.fill(graph, weights, encodings, folder, many_rows=True).path)


def embedded(session: onnx_runs.Session, **inputs: NDArray[Any]) -> Floats:
    """The rows that are there, of all inputs one after the other."""
    outputs = session.run(inputs)
    mask = outputs.pop("mask").astype(np.bool_)
    [rows] = outputs.values()
    found: Floats = rows[mask]
    return found


# ---------------------------------------------------------------- images


def vision_config(tower: Tiny) -> vision.Config:
    assert isinstance(tower.encoder.config, vision.Config)
    return tower.encoder.config


def shapes(tower: Tiny) -> list[Shape]:
    """Rows and columns of patches: square, as long as can be either way, the smallest, and others."""
    pool, tokens = vision_config(tower).pool, vision_config(tower).tokens
    return [
        (rows * pool, columns * pool) for rows, columns in ((8, 8), (1, tokens), (tokens, 1), (1, 1), (4, 17), (3, 9))
    ]


def images(tower: Tiny, *sizes: Shape, seed: int = 0) -> tuple[Floats, NDArray[np.int32]]:
    """Random images, in patches. Padding is noise."""
    config = vision_config(tower)
    positions = patch_positions(list(sizes), config.patches)
    rng = np.random.default_rng(seed)
    return rng.random((len(sizes), config.patches, config.patch_values), np.float32), positions


@pytest.fixture(params=VISION)
def sight(request: pytest.FixtureRequest) -> Tiny:
    return tiny("vision", request.param)


@pytest.fixture(params=AUDIO)
def hearing(request: pytest.FixtureRequest) -> Tiny:
    return tiny("audio", request.param)


@pytest.mark.parametrize(("modality", "names"), [("vision", VISION), ("audio", AUDIO)])
def test_every_tensor_of_transformers_is_described(modality: str, names: dict[str, Any]) -> None:
    for name in names:
        tower = tiny(modality, name)
        described = {part.source: part.shape for spec in tower.encoder.tensors.values() for part in spec.stored}
        assert described == {name: values.shape for name, values in tower.stored.items()}


def test_the_graph_sees_what_transformers_sees(sight: Tiny) -> None:
    [(encoder, _, _), (adapter, _, _), _] = sight.graphs(in_one=False)
    patches, positions = images(sight, shapes(sight)[-1])
    found = reference.run(encoder, sight.weights, {"images": patches, "positions_xy": positions}, {})
    rows = reference.run(adapter, sight.weights, {"features": found["features"]}, {})["mm_embedding"]
    assert relative_error(rows[found["mask"]], sight.oracle.embed_image(patches, positions)) <= TOLERANCE


def test_litert_gives_transformers_embeddings_of_an_image_of_any_shape(sight: Tiny) -> None:
    litert = LiteRT(sight)
    for shape in shapes(sight):
        patches, positions = images(sight, shape)
        expected = sight.oracle.embed_image(patches, positions)
        assert len(expected) == shape[0] * shape[1] // vision_config(sight).pool ** 2
        patches[0, shape[0] * shape[1] :] = NOISE
        assert relative_error(litert.embed_image(patches, positions), expected) <= TOLERANCE, shape


def test_onnx_gives_transformers_embeddings_of_images_of_several_shapes(sight: Tiny, tmp_path: Path) -> None:
    session = onnx(sight, tmp_path)
    patches, positions = images(sight, *shapes(sight)[:3])
    expected = sight.oracle.embed_image(patches, positions)
    found = embedded(session, pixel_values=patches, pixel_position_ids=positions.astype(np.int64))
    assert relative_error(found, expected) <= TOLERANCE
    rows, columns = shapes(sight)[4]  # without padding
    patches, positions = images(sight, (rows, columns))
    patches, positions = patches[:, : rows * columns], positions[:, : rows * columns]
    found = embedded(session, pixel_values=patches, pixel_position_ids=positions.astype(np.int64))
    assert relative_error(found, sight.oracle.embed_image(patches, positions)) <= TOLERANCE


# ---------------------------------------------------------------- sound


def mel(clips: int = 1, seed: int = 0) -> Floats:
    return loud_and_quiet(clips, FRAMES, 128, seed)


def test_the_graph_hears_what_transformers_hears(hearing: Tiny) -> None:
    [(encoder, _, _), (adapter, _, _), _] = hearing.graphs(in_one=False)
    frames, count = mel(), FRAMES - 42
    found = reference.run(
        encoder, hearing.weights, {"src_inputs": frames, "mask": valid_frames(count, FRAMES)}, {}
    )  # fmt: skip
    rows = reference.run(adapter, hearing.weights, found, {})["mm_embedding"]
    expected = hearing.oracle.embed_sound(frames[:, :count], valid_frames(count, count))
    assert relative_error(rows[found["mask"]], expected) <= TOLERANCE


def test_litert_gives_what_a_clip_alone_gives(hearing: Tiny) -> None:
    litert = LiteRT(hearing)
    for count in (FRAMES, 1, *range(53, 58)):
        frames = mel(seed=count)
        expected = hearing.oracle.embed_sound(frames[:, :count], valid_frames(count, count))
        frames[:, count:] = NOISE
        assert relative_error(litert.embed_sound(frames, valid_frames(count, FRAMES)), expected) <= TOLERANCE, count


def test_onnx_gives_what_a_padded_batch_gives(hearing: Tiny, tmp_path: Path) -> None:
    session = onnx(hearing, tmp_path)
    longest = FRAMES - 5
    valid = np.concatenate([valid_frames(count, longest) for count in (longest, longest // 2 + 1, 3)])
    frames = mel(clips=3)[:, :longest]
    found = embedded(session, input_features=frames, input_features_mask=valid)
    assert relative_error(found, hearing.oracle.embed_sound(frames, valid)) <= TOLERANCE


@pytest.mark.parametrize(("modality", "name"), [("vision", "eoi_embedding"), ("audio", "eoa_embedding")])
def test_the_end_is_a_row_of_the_decoders_table(modality: str, name: str) -> None:
    tower = tiny(modality, "official kind")
    found = LiteRT(tower).run(f"end_of_{modality}")[name]
    assert found.shape == (1, 1, TEXT_WIDTH)
    np.testing.assert_allclose(found[0, 0], tower.stored[TABLE][END_ID] * TEXT_WIDTH**0.5, rtol=1e-6)


# ---------------------------------------------------------------- fewer bits


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_xnnpack_takes_each_in_one_piece(precision: str) -> None:
    """But for integers of positions, rows that are looked up, and the conversions of masks."""
    contents = {
        name: content
        for modality in ("vision", "audio")
        for name, content in LiteRT(tiny(modality, "official kind"), precision).contents.items()
        if not name.startswith("end_of")
    }
    found = {name: tflite_runs.Delegation.of(content) for name, content in contents.items()}
    assert {name: delegation.partitions for name, delegation in found.items()} == dict.fromkeys(contents, 1)
    assert dict(found["audio_encoder"].outside) == {"CAST": 2}
    assert dict(found["audio_adapter"].outside) == {"CAST": 1}
    assert not found["vision_adapter"].outside
    of_positions = {"CAST", "SLICE", "ADD", "MUL", "MAXIMUM", "RESHAPE", "REDUCE_MAX", "FLOOR_DIV", "EQUAL"}
    looked_up = {"GATHER", "EMBEDDING_LOOKUP"}
    assert set(found["vision_encoder"].outside) <= of_positions | looked_up
    assert sum(found["vision_encoder"].outside.values()) <= 26


@pytest.mark.parametrize(("precision", "bound"), [("fp16", 2e-3), ("int8", 0.1), ("int4", 0.1)])
def test_rounding_costs_something_and_not_much(precision: str, bound: float, tmp_path: Path) -> None:
    """Relative error of the embeddings, of random weights. The int4 recipe stores encoders as the int8 one."""
    sight, hearing = tiny("vision", "official kind"), tiny("audio", "official kind")
    patches, positions = images(sight, (24, 24))
    frames, valid = mel(), valid_frames(FRAMES, FRAMES)
    seen, heard = sight.oracle.embed_image(patches, positions), hearing.oracle.embed_sound(frames, valid)
    (tmp_path / "sight").mkdir()
    (tmp_path / "hearing").mkdir()
    sessions = onnx(sight, tmp_path / "sight", precision), onnx(hearing, tmp_path / "hearing", precision)
    ids = positions.astype(np.int64)
    errors = {
        "litert image": relative_error(LiteRT(sight, precision).embed_image(patches, positions), seen),
        "litert sound": relative_error(LiteRT(hearing, precision).embed_sound(frames, valid), heard),
        "onnx image": relative_error(embedded(sessions[0], pixel_values=patches, pixel_position_ids=ids), seen),
        "onnx sound": relative_error(embedded(sessions[1], input_features=frames, input_features_mask=valid), heard),
    }
    assert all(TOLERANCE < error < bound for error in errors.values()), errors
