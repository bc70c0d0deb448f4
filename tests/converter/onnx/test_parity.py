"""fp32 ONNX directories of random tiny checkpoints against transformers, in our executor and in plain ONNX Runtime."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from gemma_edge.converter.convert import convert
from gemma_edge.runtime.executors.onnx.slot import OnnxSlot
from gemma_edge.runtime.formats.onnx_dir import OnnxDirectory
from tests.oracles import Oracle
from tests.slots import onnx_slot
from tools.tiny import TINY, write_tiny

CONTEXT_TOKENS = 192
PROMPT_TOKENS = 77  # longer than every window
NEW_TOKENS = 32
TOLERANCE = 1e-3  # of logits that spread over about +-12, besides what float32 explains (tests/oracles.py)


@dataclass(frozen=True)
class Converted:
    """A checkpoint as transformers sees it and as a directory."""

    oracle: Oracle
    path: Path
    vocab_size: int


@pytest.fixture(scope="module", params=TINY)
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    directory = tmp_path_factory.mktemp(request.param)
    oracle = write_tiny(request.param, directory / "checkpoint")
    convert("custom-fp32", directory / "checkpoint", directory / "fp32", context=CONTEXT_TOKENS, format="onnx")
    return Converted(Oracle(oracle), directory / "fp32", oracle.config.vocab_size)


@pytest.fixture
def executor(converted: Converted) -> Iterator[OnnxSlot]:
    executor = onnx_slot(OnnxDirectory.open(converted.path), 2, None, CONTEXT_TOKENS)
    yield executor
    executor.close()


def test_our_executor_gives_the_logits_and_the_greedy_tokens(converted: Converted, executor: OnnxSlot) -> None:
    # All ids, those behind the tokenizer's and the PLE table's vocabulary too.
    ids = np.random.default_rng(7).integers(0, converted.vocab_size, PROMPT_TOKENS).tolist()
    executor.prefill(ids[:30])
    executor.prefill(ids[30:-1])
    found = []
    for _ in range(NEW_TOKENS):
        found.append(executor.decode(ids[-1]))
        ids.append(int(found[-1].argmax()))
    expected = converted.oracle.expected(ids[:-1]).last(NEW_TOKENS)
    expected.check(np.stack(found), TOLERANCE)
    expected.check_greedy(ids[PROMPT_TOKENS:], TOLERANCE)


def test_plain_onnx_runtime_gives_the_logits_for_a_batch(converted: Converted) -> None:
    """As any other program runs the files: embeddings from their graph, a cache that grows, two rows at once."""
    directory = OnnxDirectory.open(converted.path)
    sessions = {name: onnxruntime.InferenceSession(str(directory.graph_path(name))) for name in directory.graphs}
    decoder = sessions["decoder_model_merged" if directory.is_split else "model"]
    rng = np.random.default_rng(3)
    ids = rng.integers(0, converted.vocab_size, (2, 40))
    caches = [node for node in decoder.get_inputs() if node.name.startswith("past_key_values")]
    past = {node.name: np.zeros((2, node.shape[1], 0, node.shape[3]), np.float32) for node in caches}
    for first, last in ((0, 38), (38, 39), (39, 40)):
        feeds: dict[str, Any] = {"input_ids": ids[:, first:last]}
        if directory.is_split:
            embedder = sessions["embed_tokens"]
            names = [node.name for node in embedder.get_outputs()]
            feeds = dict(zip(names, embedder.run(names, feeds), strict=True))
        feeds["attention_mask"] = np.ones((2, last), np.int64)
        feeds["position_ids"] = np.tile(np.arange(first, last), (2, 1))
        names = [node.name for node in decoder.get_outputs()]
        outputs = dict(zip(names, decoder.run(names, feeds | past), strict=True))
        past = {name: outputs[name.replace("past_key_values", "present")] for name in past}
        for row in range(2):
            expected = converted.oracle.expected(ids[row, :last].tolist()).last(1)
            expected.check(outputs["logits"][row], TOLERANCE)
