"""Rows of a batch, padded, against the same rows alone, in ONNX Runtime; test_parity.py compares with transformers."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gemma_edge.converter.convert import convert
from tests.converter.onnx.batches import PADDINGS, Batch
from tests.converter.onnx.onnx_runs import Program
from tests.near_ties import NEAR_TIE

LENGTHS = (7, 150, 23)  # one longer than the window of both fixtures
VOCAB = 2048
STEPS = 4


@pytest.fixture(scope="module", params=["gemma3", "gemma3n"])
def checkpoint(request: pytest.FixtureRequest, tiny_gemma3: Path, tiny_gemma3n: Path) -> Path:
    return {"gemma3": tiny_gemma3, "gemma3n": tiny_gemma3n}[request.param]


def alone(program: Program, ids: list[int]) -> NDArray[np.float32]:
    """The logits behind the last token, [1, V]."""
    program.begin(batch=1)
    return program.run(np.array([ids]), np.ones((1, len(ids)), np.int64))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_a_padded_row_is_as_the_row_alone(checkpoint: Path, precision: str, tmp_path: Path) -> None:
    convert(f"custom-{precision}", checkpoint, tmp_path / "model", format="onnx")
    # MatMulNBits rounds its inputs to int8: a last bit in float32, and one of them falls to the other side.
    tolerance = NEAR_TIE.get(precision, 1e-3)
    program, of_one = (Program(tmp_path / "model", batch=1) for _ in range(2))
    for padding in PADDINGS:
        batch = Batch.of(LENGTHS, padding, VOCAB)
        program.begin(len(batch.rows))
        off = []
        for step in range(1 + STEPS):
            if step:
                batch.append()
            found = program.run(batch.ids, batch.mask)
            off += [np.abs(found[row] - alone(of_one, ids)).max() for row, ids in enumerate(batch.rows)]
        assert max(off) <= tolerance
        assert np.median(off) <= 1e-3  # most are as in float32


def test_padding_between_tokens_of_one_row(checkpoint: Path, tmp_path: Path) -> None:
    """In a prompt, and in several tokens behind one: left out, wherever it is."""
    convert("custom-fp32", checkpoint, tmp_path / "model", format="onnx")
    rng = np.random.default_rng(1)
    program, of_one = (Program(tmp_path / "model", batch=1) for _ in range(2))
    ids, mask = np.zeros((1, 0), np.int64), np.zeros((1, 0), np.int64)
    for new in ([1, 1, 0, 0, 1, 0, 1], [0, 1, 1], [1, 0, 0, 1, 0], [1]):
        tokens = rng.integers(0, VOCAB, (1, len(new)))
        ids, mask = np.concatenate([ids, tokens], axis=1), np.concatenate([mask, [new]], axis=1)
        found = program.run(tokens, mask)
        np.testing.assert_allclose(found, alone(of_one, ids[mask == 1].tolist()), rtol=0, atol=1e-3)


def test_several_tokens_behind_a_prompt_in_a_batch_are_refused(tiny_gemma3: Path, tmp_path: Path) -> None:
    """By ONNX Runtime, which has no kernel for it: an error, not other logits."""
    convert("custom-fp32", tiny_gemma3, tmp_path / "model", format="onnx")
    batch = Batch.of((3, 9), "left", VOCAB)
    program = Program(tmp_path / "model", batch=2)
    program.run(batch.ids, batch.mask)
    with pytest.raises(Exception, match="batch_size must be 1 when sequence_length > 1 and past context is given"):
        program.run(batch.ids, np.concatenate([batch.mask, batch.mask], axis=1))
