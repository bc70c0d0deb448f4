"""The way in which the app asks LiteRT-LM for a drafter: of a conversation, of an engine that was made without."""

from pathlib import Path

import litert_lm
import pytest

from gemma_edge.converter.convert import convert
from tools.tiny import write_tiny
from tools.tiny_drafter import write_drafter

MODEL = "gemma4-e2b-pattern"


def said(bundle: Path, cache: Path, wanted: bool | None) -> str:
    one = litert_lm.Backend.CPU(thread_count=1)
    greedy = litert_lm.SamplerConfig(top_k=1)
    with (
        litert_lm.Engine(str(bundle), one, cache_dir=str(cache)) as engine,
        engine.create_conversation(
            sampler_config=greedy, max_output_tokens=24, enable_speculative_decoding=wanted
        ) as conversation,
    ):
        return str(conversation.send_message("In the beginning"))


def test_a_conversation_asks_for_it_by_itself_and_says_the_same(tmp_path: Path) -> None:
    litert_lm.set_min_log_severity(litert_lm.LogSeverity.FATAL)
    write_tiny(MODEL, tmp_path / "model")
    write_drafter(MODEL, tmp_path / "drafter")
    alone, both = tmp_path / "alone.litertlm", tmp_path / "both.litertlm"
    convert("custom-fp32", tmp_path / "model", alone, context=256, measure=False)
    convert("custom-fp32", tmp_path / "model", both, context=256, drafter=tmp_path / "drafter", measure=False)
    plain = said(both, tmp_path, None)
    assert len(plain) > 20
    assert said(both, tmp_path, wanted=True) == plain
    # It is taken at its word: a bundle without one is refused, and the app does not ask there (StoredBundle.request).
    with pytest.raises(RuntimeError):
        said(alone, tmp_path, wanted=True)
