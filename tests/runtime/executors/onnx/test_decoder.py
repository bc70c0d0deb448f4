"""The onnx executor against itself, token by token, and behind the engine."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gemma_edge.converter.convert import convert
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.executors.base import (
    BundleMismatchError,
    ContextOverflowError,
    ExecutorError,
    MappedRanges,
    RewindError,
)
from gemma_edge.runtime.executors.onnx.decoder import OnnxDecoder
from gemma_edge.runtime.executors.onnx.rows import OnnxTable
from gemma_edge.runtime.executors.onnx.slot import OnnxSlot
from gemma_edge.runtime.formats.onnx_digests import OnnxDirectoryError
from gemma_edge.runtime.formats.onnx_dir import OnnxDirectory
from gemma_edge.runtime.text.sampler import SamplerConfig
from tests.slots import onnx_slot

CONTEXT_TOKENS = 512
TOLERANCE = 5e-5  # two float32 computations of one value, in chunks and alone; logits span about 20


@pytest.fixture(scope="module", params=["gemma3", "gemma3n"])
def directory(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_gemma3: Path, tiny_gemma3n: Path
) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "model"
    checkpoint = {"gemma3": tiny_gemma3, "gemma3n": tiny_gemma3n}[request.param]
    convert("custom-fp32", checkpoint, out, context=CONTEXT_TOKENS, format="onnx")
    return out


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def shared(directory: Path, cache_dir: Path) -> Iterator[OnnxSlot]:
    executor = onnx_slot(OnnxDirectory.open(directory), 2, cache_dir, CONTEXT_TOKENS)
    yield executor
    executor.close()


@pytest.fixture
def executor(shared: OnnxSlot) -> OnnxSlot:
    shared.reset()
    return shared


@pytest.fixture(scope="module")
def text(val_bin: Path) -> list[int]:
    """Held-out text, one token more than the context holds."""
    tokens: list[int] = np.fromfile(val_bin, np.uint16)[: CONTEXT_TOKENS + 1].tolist()
    return tokens


@pytest.fixture(scope="module")
def expected(directory: Path, text: list[int]) -> NDArray[np.float32]:
    """Logits after each token, decoded one by one with weights that were not packed: [context, V]."""
    executor = onnx_slot(OnnxDirectory.open(directory), 2, None, CONTEXT_TOKENS)
    return np.stack([executor.decode(token) for token in text[:CONTEXT_TOKENS]])


def check_next(executor: OnnxSlot, text: list[int], expected: NDArray[np.float32]) -> None:
    position = executor.position
    assert list(executor.token_ids) == text[:position]
    np.testing.assert_allclose(executor.decode(text[position]), expected[position], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("chunk", [7, 64, 127, 128, 129, 250, 511])
def test_a_prompt_in_pieces_of_any_length(
    executor: OnnxSlot, text: list[int], expected: NDArray[np.float32], chunk: int
) -> None:
    for start in range(0, CONTEXT_TOKENS - 1, chunk):
        executor.prefill(text[start : min(start + chunk, CONTEXT_TOKENS - 1)])
    check_next(executor, text, expected)


def test_overflow_leaves_everything_usable(executor: OnnxSlot, text: list[int], expected: NDArray[np.float32]) -> None:
    executor.prefill(text[:500])
    with pytest.raises(ContextOverflowError, match="context overflow: 513 tokens asked, 512 allowed; shorten"):
        executor.prefill(text[500:513])
    check_next(executor, text, expected)


@pytest.mark.parametrize("reached", [100, 192, 193, 300, 322, 323, 500])
def test_every_rewind_that_is_allowed_is_exact(
    executor: OnnxSlot, text: list[int], expected: NDArray[np.float32], reached: int
) -> None:
    """Sliding layers hold 64 + 128 rows and drop 129 at once: at 193, 322, 451 tokens nothing before is left."""
    executor.prefill(text[:reached])
    earliest = executor.earliest_rewind
    assert earliest == (0 if reached <= 192 else 193 + (reached - 193) // 129 * 129)
    if earliest:
        with pytest.raises(RewindError) as caught:
            executor.rewind(earliest - 1)
        assert str(caught.value) == (
            f"cannot rewind to position {earliest - 1}; {earliest} to {reached} are in the cache; "
            "restore a snapshot or reset and prefill again"
        )
    for position in (reached, (earliest + reached) // 2, earliest):
        executor.reset()
        executor.prefill(text[:reached])
        executor.rewind(position)
        check_next(executor, text, expected)


def test_a_snapshot_reaches_back_further(executor: OnnxSlot, text: list[int], expected: NDArray[np.float32]) -> None:
    executor.prefill(text[:100])
    snapshot = executor.snapshot()
    executor.prefill(text[100:400])
    executor.restore(snapshot)
    check_next(executor, text, expected)
    assert snapshot.nbytes > 0
    executor.rewind(50)
    with pytest.raises(RewindError) as caught:
        executor.restore(snapshot)
    assert str(caught.value) == (
        "cannot restore the snapshot at position 100: tokens before it were replaced since; reset and prefill again"
    )


def test_an_interrupted_run_leaves_nothing_that_is_relied_on(
    executor: OnnxSlot, text: list[int], expected: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C arrives when ONNX Runtime returns: sliding layers have dropped rows by then."""
    executor.prefill(text[:150])
    session = executor._shared.session

    class Interrupted:
        def run_with_iobinding(self, binding: object) -> None:
            assert session is not None
            session.run_with_iobinding(binding)
            raise KeyboardInterrupt

    monkeypatch.setattr(executor._shared, "session", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        executor.prefill(text[150:250])
    monkeypatch.undo()
    executor.prefill(text[executor.position : 250])
    check_next(executor, text, expected)


def test_ids_and_calls_that_make_no_sense(executor: OnnxSlot, directory: Path) -> None:
    decoder = OnnxDecoder(OnnxDirectory.open(directory), 1, None)
    vocab_size = decoder.vocab_size
    with pytest.raises(ExecutorError) as caught:
        executor.prefill([5, vocab_size])
    assert str(caught.value) == (
        f"token id {vocab_size} is outside the vocabulary of {vocab_size}; tokenize with this model's tokenizer"
    )
    closed, other = decoder.new_slot(16), decoder.new_slot(16)
    closed.close()
    closed.close()
    assert closed.nbytes == 0
    assert len(other.decode(5)) == vocab_size
    decoder.close()
    decoder.close()
    assert decoder.mapped_ranges() == MappedRanges()
    for use in (lambda: closed.decode(5), lambda: other.decode(5), decoder.new_slot):
        with pytest.raises(ExecutorError, match="the executor is closed; create a new engine"):
            use()


def test_weights_that_are_gone(directory: Path, tmp_path: Path) -> None:
    opened = OnnxDirectory.open(Path(shutil.copytree(directory, tmp_path / "model")))
    [data] = opened.decoder_data
    data.unlink()
    for cache_dir in (None, tmp_path):
        with pytest.raises(OnnxDirectoryError) as caught:
            onnx_slot(opened, 1, cache_dir, 16)
        assert str(caught.value) == f"{data}: cannot be read (No such file or directory); copy the file again"


def test_a_damaged_weight_cache_is_made_again(tiny_directory: Path, tmp_path: Path, text: list[int]) -> None:
    opened = OnnxDirectory.open(tiny_directory)
    decoder = OnnxDecoder(opened, 1, tmp_path)
    expected = decoder.new_slot(16).decode(text[0])
    [packed] = decoder.mapped_ranges().weights
    decoder.close()
    for damage in ("shortened", "without its sizes", "of the same length"):
        if damage == "of the same length":
            graph = packed.path.with_name("decoder.onnx")
            graph.write_bytes(b"\xff" * graph.stat().st_size)
        elif damage == "shortened":
            packed.path.write_bytes(packed.path.read_bytes()[:-1])
        else:
            packed.path.with_name("sizes.json").write_text("{")
        again = onnx_slot(opened, 1, tmp_path, 16)
        assert packed.path.stat().st_size == packed.nbytes, damage
        np.testing.assert_array_equal(again.decode(text[0]), expected, damage)
        again.close()


def test_an_output_that_is_no_look_up(directory: Path) -> None:
    opened = OnnxDirectory.open(directory)
    path = opened.graph_path(opened.decoder)
    with pytest.raises(BundleMismatchError) as caught:
        OnnxTable(path, opened.graphs[opened.decoder], "logits")
    assert str(caught.value) == (
        f"{path}, logits: not an output that looks rows up; convert the checkpoint with gemma-edge"
    )


# ---------------------------------------------------------------- behind the engine


def test_the_engine_takes_a_directory(directory: Path, cache_dir: Path) -> None:
    with Engine(str(directory), cache_dir=str(cache_dir)) as engine:
        assert engine.max_num_tokens == CONTEXT_TOKENS
        engine.health()
        greedy = SamplerConfig(top_k=1)
        with engine.create_conversation(sampler_config=greedy, max_output_tokens=12) as conversation:
            first = conversation.send_message("He went to the house")
            conversation.send_message("And then?")
        with engine.create_conversation(sampler_config=greedy, max_output_tokens=12) as conversation:
            assert conversation.send_message("He went to the house") == first
        assert engine.memory().mapped_bytes["weight_cache"] > 0


def test_a_context_that_a_directory_has_not(directory: Path, cache_dir: Path) -> None:
    with pytest.raises(ExecutorError) as caught:
        Engine(str(directory), max_num_tokens=CONTEXT_TOKENS + 1, cache_dir=str(cache_dir))
    assert str(caught.value) == (
        "max_num_tokens is 513, model was converted for 512; ask for 1 to 512 or convert with a longer context"
    )
