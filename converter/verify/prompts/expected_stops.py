"""The tokens that end a reply, from everything in a checkpoint that says so."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gemma_edge.converter.verify.prompts.checkpoint_files import read_object
from gemma_edge.converter.verify.prompts.expected_prompts import ExpectedPrompts
from gemma_edge.converter.verify.prompts.expected_tokens import CheckpointTokenizer

_REPLY: Final = "0451"
_HARMLESS: Final = ("<eos>", "<end_of_turn>")  # a model that was taught another end does not write Gemma's


@dataclass(frozen=True)
class ExpectedStops:
    """required: each id with what asks for it. allowed: those, and what a bundle may stop at besides."""

    required: Mapping[int, str]
    allowed: frozenset[int]


def expected_stops(
    checkpoint: Path, tokenizer: CheckpointTokenizer, prompts: ExpectedPrompts, vocab_size: int
) -> ExpectedStops:
    """Ids below vocab_size: a model cannot write others. Raises VerifyError for a file that cannot be read.

    generation_config.json wins over config.json, as in transformers. A chat template ends a model's turn with a token
    that the tuned model has learned to write, listed or not.
    """
    generation = _ids(read_object(checkpoint / "generation_config.json"))
    config = read_object(checkpoint / "config.json")
    nested = config.get("text_config")
    configured = _ids(config) or _ids(nested if isinstance(nested, dict) else {})
    required = dict.fromkeys(configured, "config.json") if not generation else {}
    required |= dict.fromkeys(generation, "generation_config.json")
    if tokenizer.eos_id is not None:
        required.setdefault(tokenizer.eos_id, "the tokenizer's eos_token")
    for number in _turn_end(tokenizer, prompts):
        required.setdefault(number, "the chat template, after a reply")
    required = {number: source for number, source in required.items() if 0 <= number < vocab_size}
    harmless = {number for number in map(tokenizer.find, _HARMLESS) if number is not None}
    return ExpectedStops(required, frozenset(required) | harmless | frozenset(configured))


def _turn_end(tokenizer: CheckpointTokenizer, prompts: ExpectedPrompts) -> Iterator[int]:
    """What the template writes behind a reply, if it is a token of its own and not ordinary text."""
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": _REPLY}]
    _, _, after = (prompts.render(turns, generation=False) or "").partition(_REPLY)
    ids = tokenizer.encode(after.lstrip())
    if ids and ids[0] in tokenizer.added.values():
        yield ids[0]


def _ids(config: Mapping[str, Any]) -> list[int]:
    """eos_token_id: a number, a list of them, or nothing."""
    listed = config.get("eos_token_id")
    return [number for number in (listed if isinstance(listed, list) else [listed]) if type(number) is int]
