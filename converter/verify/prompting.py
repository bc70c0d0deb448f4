"""What turns a conversation into tokens and back: template, stop tokens, start token, tokenizer.

None of them moves a logit, and each makes a model answer badly, or never stop.
"""

from collections.abc import Iterator
from itertools import zip_longest

import sentencepiece

from gemma_edge.converter.chat_template import PROBES, checkpoint_template, gemma_template, render
from gemma_edge.converter.checkpoint import Checkpoint
from gemma_edge.converter.metadata import stop_token_ids
from gemma_edge.converter.tokenizer import sentencepiece_model
from gemma_edge.converter.verify.faults import Finding
from gemma_edge.converter.verify.text import builtin_text
from gemma_edge.runtime.model import TextModel


def prompting_faults(checkpoint: Checkpoint, vocab_size: int, model: TextModel) -> list[Finding]:
    """Where the bundle's answers differ from the checkpoint's own files. Raises as reading those does."""
    pieces = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(checkpoint.side_path, vocab_size))
    return [
        *_template(checkpoint, model),
        *_stop_tokens(checkpoint, pieces, model),
        *_start_token(pieces, model),
        *_tokenizer(pieces, model),
    ]


def _template(checkpoint: Checkpoint, model: TextModel) -> Iterator[Finding]:
    meaning = "prompts must look as in training: compare the bundle's template with the checkpoint's chat template"
    right = checkpoint_template(checkpoint.side_path) or gemma_template()
    found = model.metadata.jinja_prompt_template
    for messages in PROBES:
        try:
            expected = render(right, messages)
        except Exception:  # a template may refuse a conversation, such as one with a system message
            continue
        try:
            rendered = render(found, messages)
        except Exception as error:
            rendered = f"({type(error).__name__}: {error})"
        if rendered != expected:
            at = next(i for i, pair in enumerate(zip_longest(expected, rendered)) if pair[0] != pair[1])
            evidence = (
                f"after {expected[max(0, at - 24) : at]!r} the bundle writes {rendered[at : at + 32]!r}, "
                f"the checkpoint {expected[at : at + 32]!r}"
            )
            yield Finding("wrong chat template", meaning, evidence)
            return


def _stop_tokens(
    checkpoint: Checkpoint, pieces: sentencepiece.SentencePieceProcessor, model: TextModel
) -> Iterator[Finding]:
    expected = {(number,) for number in stop_token_ids(checkpoint.side_path, pieces)}
    found = {tuple(ids) for ids in model.eos_token_ids}
    if expected != found:
        parts = [
            f"{word} {', '.join(_spelled(pieces, ids) for ids in sorted(wrong))}"
            for word, wrong in (("lacks", expected - found), ("has besides", found - expected))
            if wrong
        ]
        meaning = "a reply ends at generation_config.json's eos_token_id, <eos> and <end_of_turn>, and nowhere else"
        yield Finding("wrong stop tokens", meaning, f"the bundle {' and '.join(parts)}")


def _start_token(pieces: sentencepiece.SentencePieceProcessor, model: TextModel) -> Iterator[Finding]:
    if model.start_token_id != pieces.bos_id():
        evidence = f"the bundle starts with {model.start_token_id}, the tokenizer's <bos> is {pieces.bos_id()}"
        yield Finding("wrong start token", "Gemma predicts nonsense without <bos>", evidence)


def _tokenizer(pieces: sentencepiece.SentencePieceProcessor, model: TextModel) -> Iterator[Finding]:
    for line in builtin_text().splitlines():
        expected, found = list(pieces.encode(line)), model.tokenizer.encode(line)
        if expected != found:
            evidence = f"{line[:40]!r} is {found[:8]} in the bundle, {expected[:8]} in the checkpoint"
            yield Finding("wrong tokenizer", "the same text must become the same tokens", evidence)
            return


def _spelled(pieces: sentencepiece.SentencePieceProcessor, ids: tuple[int, ...]) -> str:
    names = [pieces.id_to_piece(i) if 0 <= i < pieces.vocab_size() else "?" for i in ids]
    return " ".join(f"{i} ({name})" for i, name in zip(ids, names, strict=True))
