"""fp32 bundles of random tiny checkpoints against transformers, in LiteRT and in Google's own engine.

Prompts are longer than every sliding window (16 to 32 tokens) and than one prefill chunk (32), and end in a partial
chunk, so that rings wrap and padding is written.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import litert_lm
import numpy as np
import pytest
import sentencepiece

from gemma_edge.converter.convert import convert
from gemma_edge.runtime.executors.litert.decoder import DecoderSections
from gemma_edge.runtime.executors.litert.slot import LitertSlot
from gemma_edge.runtime.formats.litertlm import Bundle, SectionKind
from tests.oracles import Oracle
from tests.slots import litert_slot
from tools.tiny import TINY, write_tiny

CONTEXT_TOKENS = 192
PREFILL_TOKENS = (8, 32)
PROMPT_TOKENS = 77
NEW_TOKENS = 32
TOLERANCE = 1e-3  # of logits that spread over about +-12, besides what float32 explains (tests/oracles.py)


@dataclass(frozen=True)
class Converted:
    """A checkpoint as transformers sees it and as a bundle."""

    oracle: Oracle
    bundle: Path
    vocab_size: int


@pytest.fixture(scope="module", params=TINY)
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    directory = tmp_path_factory.mktemp(request.param)
    oracle = write_tiny(request.param, directory / "checkpoint")
    bundle = directory / "fp32.litertlm"
    convert("custom-fp32", directory / "checkpoint", bundle, context=CONTEXT_TOKENS, prefill=PREFILL_TOKENS)
    return Converted(Oracle(oracle), bundle, oracle.config.vocab_size)


@pytest.fixture
def executor(converted: Converted, tmp_path: Path) -> Iterator[LitertSlot]:
    executor = litert_slot(DecoderSections.of(Bundle.open(converted.bundle)), 2, tmp_path)
    yield executor
    executor.close()


def test_litert_gives_the_logits_and_the_greedy_tokens(converted: Converted, executor: LitertSlot) -> None:
    # All ids, those behind the tokenizer's and the PLE table's vocabulary too.
    ids = np.random.default_rng(7).integers(0, converted.vocab_size, PROMPT_TOKENS).tolist()
    executor.prefill(ids[:-1])
    found = []
    for _ in range(NEW_TOKENS):
        found.append(executor.decode(ids[-1]).copy())
        ids.append(int(found[-1].argmax()))
    expected = converted.oracle.expected(ids[:-1]).last(NEW_TOKENS)
    expected.check(np.stack(found), TOLERANCE)
    expected.check_greedy(ids[PROMPT_TOKENS:], TOLERANCE)


def test_litert_lm_gives_the_greedy_text(converted: Converted, tmp_path: Path, val_bin: Path) -> None:
    model = Bundle.open(converted.bundle)
    pieces = sentencepiece.SentencePieceProcessor(
        model_proto=model.read(model.section(SectionKind.SENTENCEPIECE_TOKENIZER))
    )
    # Text is all that comes back from this engine: leave only tokens that text tells apart, and never stop early.
    silent = [i for i in range(pieces.vocab_size()) if pieces.is_control(i) or pieces.is_byte(i) or pieces.is_unused(i)]
    suppressed = sorted({*silent, *range(110), *range(pieces.vocab_size(), converted.vocab_size)})
    message = pieces.decode(np.fromfile(val_bin, np.uint16)[:PROMPT_TOKENS].tolist())
    backend = litert_lm.Backend.CPU(thread_count=2)
    with (
        litert_lm.Engine(str(converted.bundle), backend, cache_dir=str(tmp_path)) as engine,
        engine.create_conversation(sampler_config=litert_lm.SamplerConfig(top_k=1)) as conversation,
    ):
        ids = [pieces.bos_id(), *engine.tokenize(conversation.render_message_to_string(message))]
        said = conversation.send_message(
            message,
            max_output_tokens=NEW_TOKENS,
            suppress_tokens_config=litert_lm.SuppressTokensConfig(suppressed),
        )
    text = "".join(part["text"] for part in said["content"])
    assert len(ids) > PROMPT_TOKENS
    reply = converted.oracle.greedy(ids, NEW_TOKENS, suppressed)
    settled = converted.oracle.expected([*ids, *reply[:-1]]).last(NEW_TOKENS).settled(reply, TOLERANCE, suppressed)
    assert text.startswith(pieces.decode(reply[:settled]))
    assert settled < NEW_TOKENS or text == pieces.decode(reply)
