"""The model files against transformers, without any emitter in between: Graph run by converter/graph/reference.py."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.graph import ops as ir
from gemma_edge.converter.graph import reference
from gemma_edge.converter.models.family import Model
from tests.oracles import Expected, Oracle
from tools.tiny import TINY, write_tiny

CHUNKS = (7, 1, 16, 1, 1)  # beyond every window of 16 in several steps
TOLERANCE = 5e-4  # of logits that spread over about +-12, besides what float32 explains (tests/oracles.py)


def _forward(checkpoint: Checkpoint, model: Model, ids: list[int]) -> dict[int, NDArray[np.float32]]:
    """Logits by position, from chunks of several lengths, the last token of each chunk through `decode`."""
    weights = {spec.name: spec.fold(checkpoint.read(spec.source)) for spec in model.tensors.values()}
    lookups = {lookup.name: lookup for lookup in model.lookups()}

    def inputs(tokens: list[int]) -> dict[str, NDArray[np.float32]]:
        rows: dict[str, list[NDArray[np.float32]]] = {}
        for token in tokens:
            for name, graph in lookups.items():
                ids_input = {"token_ids": np.array([[token]], np.int32)}
                key = "embeddings" if name == "embedder" else "per_layer_embeddings"
                rows.setdefault(key, []).append(reference.run(graph, weights, ids_input, {})["embeddings"])
        return {key: np.concatenate(parts, axis=1) for key, parts in rows.items()}

    past: reference.Past = {}
    logits = {}
    start = 0
    for length in CHUNKS:
        chunk = ids[start : start + length]
        with_logits = length == 1
        graph = model.decoder("decode" if with_logits else "prefill", length, with_logits)
        outputs = reference.run(graph, weights, inputs(chunk), past)
        if with_logits:
            logits[start] = outputs["logits"][0, 0]
        start += length
    return logits


@pytest.mark.parametrize("name", TINY)
def test_graph_equals_transformers(name: str, tmp_path: Path) -> None:
    oracle = Oracle(write_tiny(name, tmp_path))
    checkpoint = Checkpoint.open(tmp_path)
    model = Model.from_json(checkpoint.text_config)
    ids = np.random.default_rng(1).integers(5, model.config.vocab_size, sum(CHUNKS)).tolist()
    expected = oracle.expected(ids)
    logits = _forward(checkpoint, model, ids)
    assert len(logits) == CHUNKS.count(1)
    for position, found in logits.items():
        Expected(expected.logits[position, None], expected.noise[position, None]).check(found[None], TOLERANCE)


def test_prefill_stops_after_the_last_layer_that_owns_kv(tiny_gemma3n: Path) -> None:
    model = Model.from_json(Checkpoint.open(tiny_gemma3n).text_config)
    prefill, decode = model.decoder("prefill_8", 8, False), model.decoder("decode", 1, True)
    used = {name.split(".")[1] for name in prefill.used if name.startswith("layers.")}
    assert used == {"0", "1", "2", "3", "4"}  # 8 layers, 3 share
    assert set(prefill.caches) == set(decode.caches) == {0, 1, 2, 3, 4}
    assert set(prefill.used) < set(decode.used)
    assert "layers.4.self_attn.q_proj.weight" not in prefill.used


def test_every_op_has_a_reference() -> None:
    assert set(reference.RUN) == set(ir.OPS)
