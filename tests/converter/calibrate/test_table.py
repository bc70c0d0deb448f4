"""Per-layer embeddings rounded for what the layers do with them."""

from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gemma_edge.converter.calibrate.table import GateMoments, TableRounder
from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.graph.ops import Binary
from gemma_edge.converter.quantize.quantize import Quantized
from gemma_edge.converter.quantize.recipes import Storage
from gemma_edge.runtime.formats.encoding import Encoding

TABLE = "embed_tokens_per_layer.weight"


def test_gemma3_has_no_such_table(tiny_gemma3: Path) -> None:
    assert GateMoments.of(StreamingModel.open(Checkpoint.open(tiny_gemma3)).graph).gates == []


@pytest.fixture(scope="module")
def watched() -> tuple[Checkpoint, StreamingModel, GateMoments]:
    path = Path(__file__).parents[2] / "fixtures" / "tiny-gemma3n"
    checkpoint = Checkpoint.open(path)
    model = StreamingModel.open(checkpoint)
    moments = GateMoments.of(model.graph)
    windows = np.fromfile(path.parent / "val.bin", np.uint16)[:512].astype(np.int32).reshape(2, 256)
    for value, array in model.trace(windows):
        moments.see(value, array)
    return checkpoint, model, moments


def test_each_layer_is_seen_once_per_token(watched: tuple[Checkpoint, StreamingModel, GateMoments]) -> None:
    _, _, moments = watched
    assert [gate.layer for gate in moments.gates] == list(range(8))
    assert {gate.tokens for gate in moments.gates} == {512}
    assert [gate.weight for gate in moments.gates] == [f"layers.{i}.per_layer_projection.weight" for i in range(8)]


@pytest.mark.parametrize("encoding", ["int4", "int4-b32"])
def test_rows_change_the_layers_less_than_each_value_rounded_for_itself(
    encoding: str, watched: tuple[Checkpoint, StreamingModel, GateMoments]
) -> None:
    """With a scale per row, and with one for each layer's part of it."""
    checkpoint, model, moments = watched
    specs = model.model.tensors
    storage = Storage(Encoding.parse(encoding))

    def read(name: str) -> NDArray[np.float32]:
        return specs[name].fold(checkpoint.read(specs[name].source))

    rounder = TableRounder.of(moments, storage, read)
    rows = read(TABLE)[300:420]
    together, alone = rounder.round(300, rows), storage.store(rows)
    grams = []
    for part in rounder.rounders:
        back = np.argsort(part.factor.order)
        grams.append(part.factor.gram[np.ix_(back, back)])

    def change(stored: Quantized) -> NDArray[np.float32]:
        return storage.encoding.dequantize(stored.data, stored.scales, rows.shape) - rows

    def cost(stored: Quantized) -> float:
        parts = change(stored).reshape(len(rows), 8, 32)
        return float(np.einsum("nlp,lpq,nlq->", parts, np.stack(grams), parts))

    assert cost(together) < 0.75 * cost(alone)
    assert together.error.squared == pytest.approx(float(np.square(change(together)).sum()), rel=1e-3)


def test_gates_are_found_on_either_side_of_a_product(
    watched: tuple[Checkpoint, StreamingModel, GateMoments],
) -> None:
    _, model, moments = watched
    swapped = copy(model.graph)
    swapped.ops = [
        replace(op, a=op.b, b=op.a) if isinstance(op, Binary) and op.name == "mul" else op for op in model.graph.ops
    ]
    found = GateMoments.of(swapped)
    assert [(gate.layer, gate.gate) for gate in found.gates] == [(gate.layer, gate.gate) for gate in moments.gates]
