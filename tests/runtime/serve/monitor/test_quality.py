"""The counts that stand for quality, by hand; and perplexity, from transformers' log likelihoods."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.serve.guard.policy import Direction, Policy
from gemma_edge.runtime.serve.monitor.quality import (
    quality,
    reference_overlap,
    reply_perplexity,
    sentence_length,
    sentences_without_hits,
    word_overlap,
)


def test_word_overlap_counts_the_prompts_words() -> None:
    assert word_overlap("What is the capital of France?", "Paris") == 0.0
    assert word_overlap("What is the capital of France?", "The capital.") == pytest.approx(4 / 6)
    assert word_overlap("capital France", "FRANCE has a capital") == 1.0
    assert word_overlap("", "anything") == 0.0


def test_sentence_length_is_full_where_it_is_usual() -> None:
    assert sentence_length("This is a sentence of seven words. And so is this one, I think.") == 1.0
    assert sentence_length("Yes.") == pytest.approx(1 / 5)
    assert sentence_length("word " * 60) == pytest.approx(30 / 60)
    assert sentence_length("3.14 is a number of note") == 1.0  # the point ends no sentence
    assert sentence_length("") == sentence_length("...") == 0.0


def test_safety_is_what_the_rules_do_not_find() -> None:
    rules = Policy.of({"category": [{"name": "n", "words": ["falcon"], "output": "log"}]}).rules[Direction.OUTPUT]
    assert sentences_without_hits("A falcon. A dove! A Falcon? A crow.", rules) == 0.5
    assert sentences_without_hits("", rules) == 1.0
    assert sentences_without_hits("A falcon.", ()) is None


def test_reference_overlap_is_f1_of_words() -> None:
    assert reference_overlap("the cat sat", "the cat sat") == 1.0
    assert reference_overlap("the cat", "a dog") == 0.0
    assert reference_overlap("the the the cat", "the cat sat down") == pytest.approx(2 * 2 / 8)
    assert reference_overlap("", "") == 0.0


def test_what_was_not_measured_is_none() -> None:
    found = quality("a b", "a b c d e.")
    assert (found.relevance_score, found.coherence_score) == (1.0, 1.0)
    assert (found.safety_score, found.factual_accuracy, found.user_satisfaction, found.perplexity) == (None,) * 4
    assert quality("a", "b c", "b c", perplexity=2.0).factual_accuracy == 1.0


def test_perplexity_is_transformers(tiny_bundle: Callable[[str, str], Path], tiny_gemma3: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_gemma3, dtype=torch.float64).eval()
    with Engine(str(tiny_bundle("gemma3", "fp32")), max_num_tokens=256) as engine:
        session = engine.create_session(apply_prompt_template=False)
        session.run_prefill(["The quick brown fox"])
        before = list(session.token_ids)
        reply = " jumps over the lazy dog."
        found = reply_perplexity(session, reply)
        assert list(session.token_ids) == before
        tokens = engine.text_model.tokenizer.encode(reply)
        with torch.no_grad():
            logits = model(torch.tensor([[*before, *tokens]])).logits[0]
        scores = logits.log_softmax(-1)[len(before) - 1 : -1].gather(1, torch.tensor(tokens)[:, None])
        assert found == pytest.approx(math.exp(-float(scores.mean())), rel=1e-4)
        with pytest.raises(ValueError, match="the reply has no tokens; give one with text"):
            reply_perplexity(session, "")
