"""fp32 ONNX directories of random tiny checkpoints against transformers, in our executor and in plain ONNX Runtime."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from gemma_edge.converter.convert import convert
from gemma_edge.runtime.executors.onnx.slot import OnnxSlot
from gemma_edge.runtime.formats.onnx_dir import OnnxDirectory
from tests.converter.onnx.batches import PADDINGS, Batch
from tests.converter.onnx.onnx_runs import Program
from tests.oracles import Oracle
from tests.slots import onnx_slot
from tools.tiny import TINY, write_tiny

CONTEXT_TOKENS = 192
PROMPT_TOKENS = 77  # longer than every window
NEW_TOKENS = 32
STEPS = 4  # of a batch
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
    program = Program(converted.path, batch=2)
    ids = np.random.default_rng(3).integers(0, converted.vocab_size, (2, 40))
    for first, last in ((0, 38), (38, 39), (39, 40)):
        logits = program.run(ids[:, first:last], np.ones((2, last), np.int64))
        for row in range(2):
            expected = converted.oracle.expected(ids[row, :last].tolist()).last(1)
            expected.check(logits[row : row + 1], TOLERANCE)


@pytest.mark.parametrize("padding", PADDINGS)
def test_rows_of_unequal_length_give_the_logits_of_each_row_alone(converted: Converted, padding: str) -> None:
    """A prompt, and more tokens: some rows longer than every window, one of a single token."""
    batch = Batch.of((5, 40, 77, 1), padding, converted.vocab_size)
    program = Program(converted.path, len(batch.rows))
    found = [program.run(batch.ids, batch.mask)]
    for _ in range(STEPS):
        batch.append()
        found.append(program.run(batch.ids, batch.mask))
    for row, ids in enumerate(batch.rows):
        expected = converted.oracle.expected(ids).last(1 + STEPS)
        expected.check(np.stack(found)[:, row], TOLERANCE)
