"""Weights that are not stored as a graph wants them: derived from whole tensors, or rows from elsewhere in a table."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.graph.ops import Graph
from gemma_edge.converter.litert.lower import emit
from gemma_edge.converter.quantize.recipes import Storage
from gemma_edge.converter.quantize.stream import Stream
from gemma_edge.converter.tensors import Derivation, Fold, Overlay, Role, SourceTensor, TensorSpec
from gemma_edge.runtime.formats.encoding import Encoding

ROWS, COLUMNS = 9, 4
TABLE = "embed_tokens.weight"
EXTRA = SourceTensor("embed_audio.embedding.weight", (3, COLUMNS))


def double(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return 2 * values


def written(spec: TensorSpec, encoding: str, directory: Path) -> tuple[Checkpoint, NDArray[np.float32]]:
    """The checkpoint, and what a section holds of one tensor of it."""
    (directory / "config.json").write_text('{"model_type": "gemma3n"}')
    tensors = {
        f"model.language_model.{TABLE}": torch.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS).float(),
        f"model.{EXTRA.source}": -torch.arange(1, 1 + 3 * COLUMNS).reshape(3, COLUMNS).float(),
    }
    save_file(tensors, directory / "model.safetensors")
    checkpoint = Checkpoint.open(directory)
    checkpoint.match([spec], ignored=["language_model."])

    graph = Graph("test", 1, {spec.name: spec})
    graph.output("y", graph.reshape(graph.weight(spec.name), (1, *spec.shape)))
    storage = Storage(Encoding.parse(encoding))
    section = emit("test", [graph], {spec.name: storage.encoding})
    counted: list[int] = []
    with (directory / "section").open("w+b") as file:
        file.truncate(section.lay_out())
        Stream(checkpoint, {spec.name: spec}, {spec.name: storage}, file, 0).write(
            section.weights.values(), counted.append
        )
    assert sum(counted) == 2 * spec.values
    placed = section.weights[spec.name]
    data = np.fromfile(directory / "section", np.uint8)[placed.data_offset :]
    nbytes = storage.encoding.data_bytes(spec.shape)
    scales = placed.row_scales if storage.encoding.kind == "int" else None
    return checkpoint, storage.encoding.dequantize(data[:nbytes], scales, spec.shape)


def test_a_tensor_is_derived_from_a_whole_one(tmp_path: Path) -> None:
    transposed = TensorSpec.derived("w", (COLUMNS, 3), Role.NORM, Derivation((EXTRA,), np.transpose))
    checkpoint, found = written(transposed, "fp32", tmp_path)
    np.testing.assert_array_equal(found, checkpoint.read(EXTRA.source).T)


def test_a_tensor_is_derived_from_two(tmp_path: Path) -> None:
    table = SourceTensor(TABLE, (ROWS, COLUMNS))
    product = Derivation((EXTRA, table), lambda extra, rows: (extra @ rows.T).astype(np.float32))
    checkpoint, found = written(TensorSpec.derived("w", (3, ROWS), Role.NORM, product), "fp32", tmp_path)
    np.testing.assert_array_equal(found, checkpoint.read(EXTRA.source) @ checkpoint.read(TABLE).T)


def test_rows_of_an_overlay_replace_stored_ones_unfolded(tmp_path: Path) -> None:
    for first_row, encoding in ((0, "fp32"), (4, "fp32"), (ROWS - 3, "fp32"), (4, "int8")):
        overlay = Overlay(first_row, 3, Derivation((EXTRA,), double))
        spec = TensorSpec(TABLE, TABLE, (ROWS, COLUMNS), Role.EMBEDDING, Fold(mul=10.0), overlays=(overlay,))
        checkpoint, found = written(spec, encoding, tmp_path)
        expected = 10 * checkpoint.read(TABLE)
        expected[first_row : first_row + 3] = double(checkpoint.read(EXTRA.source))
        np.testing.assert_allclose(found, expected, rtol=0, atol=0 if encoding == "fp32" else 10 * ROWS * COLUMNS / 254)


@pytest.mark.parametrize("prefixes", [("model.language_model.", "model."), ("language_model.model.", "")])
def test_encoders_are_found_beside_the_decoder(prefixes: tuple[str, str], tmp_path: Path) -> None:
    """As transformers writes them since version 4.52, and as it did before."""
    (tmp_path / "config.json").write_text('{"model_type": "gemma3n"}')
    decoder, encoder = prefixes
    names = (f"{decoder}{TABLE}", f"{encoder}audio_tower.conformer.0.norm.weight", f"{encoder}{EXTRA.source}")
    save_file({name: torch.zeros(3, COLUMNS) for name in names}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    sources = (TABLE, "audio_tower.conformer.0.norm.weight", EXTRA.source)
    found = [checkpoint.resolve(source) for source in sources]
    assert [None if tensor is None else tensor.name for tensor in found] == list(names)


def test_two_overlays_lie_side_by_side(tmp_path: Path) -> None:
    overlays = tuple(Overlay(row, 3, Derivation((EXTRA,), double)) for row in (6, 3))
    spec = TensorSpec(TABLE, TABLE, (ROWS, COLUMNS), Role.EMBEDDING, overlays=overlays)
    checkpoint, found = written(spec, "fp32", tmp_path)
    np.testing.assert_array_equal(found[3:], np.tile(double(checkpoint.read(EXTRA.source)), (2, 1)))
    np.testing.assert_array_equal(found[:3], checkpoint.read(TABLE)[:3])
