"""How a checkpoint wants replies to be drawn and ended: generation_config.json, config.json, tokenizer and template.

As transformers reads them, with one difference: every file's stop tokens count. A fine-tune often corrects one of them
only, and a model does not write the end of a format that it was not taught.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_edge.converter.tokenizer.template_files import special_tokens
from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.profiles.plain_file import read_plain

if TYPE_CHECKING:
    import sentencepiece  # a plan is shown without it

_LARGEST = 2**31 - 1  # what an int32 of the metadata holds; more is no sampler's setting
_FILE = "generation_config.json"
_ENDS = ("<eos>", "<end_of_turn>", "<turn|>", "<|tool_response>")  # Gemma's; after a call Gemma 4 opens the result

# What a bundle says, and what changes no token that is drawn: how fast, how many, what else is returned.
_SAID = frozenset(
    ["bos_token_id", "eos_token_id", "pad_token_id", "do_sample", "temperature", "top_k", "top_p", "suppress_tokens"]
)
_WITHOUT_EFFECT = frozenset(
    [
        "_from_model_config",
        "transformers_version",
        "trust_remote_code",
        "use_cache",
        "cache_implementation",
        "cache_config",
        "max_cache_len",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "output_logits",
        "return_dict_in_generate",
        "prefill_chunk_size",
        "compile_config",
        "disable_compile",
        "continuous_batching_config",
        "low_memory",
        "use_mtp",
        "is_assistant",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "assistant_confidence_threshold",
        "assistant_early_exit",
        "assistant_lookbehind",
        "target_lookbehind",
        "assistant_ensemble_weight",
        "prompt_lookup_num_tokens",
        "max_matching_ngram_size",
        "speculation_type",
    ]
)
_BEAMS = frozenset(("early_stopping", "length_penalty", "diversity_penalty", "num_beam_groups"))  # of a beam search
# Values with which transformers leaves a setting out (5.23, generation/configuration_utils.py and utils.py).
_OFF: Mapping[str, tuple[Any, ...]] = {
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "guidance_scale": (1,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "max_length": (20,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "min_p": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "penalty_alpha": (0,),
    "repetition_penalty": (1,),
    "typical_p": (1,),
}


class MetadataError(GemmaEdgeError):
    """generation_config.json, config.json or the tokenizer says something that cannot be."""


@dataclass(frozen=True)
class SamplerDefaults:
    """How to sample unless the application says otherwise. top_k None keeps every token; is_greedy: do not sample."""

    top_k: int | None = 64  # these three are generation_config.json of google/gemma-3-1b-it and google/gemma-3n-E2B-it
    top_p: float = 0.95
    temperature: float = 1.0
    is_greedy: bool = False

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_k < 1:
            raise MetadataError(f"{_FILE}: top_k is {self.top_k}, expected at least 1, or 0 for off; correct it")
        if not 0 < self.top_p <= 1:
            raise MetadataError(f"{_FILE}: top_p is {self.top_p}, expected 0 < top_p <= 1; correct it")
        if not 0 <= self.temperature < math.inf:
            raise MetadataError(f"{_FILE}: temperature is {self.temperature}, expected 0 or more; correct it")


def sampler_defaults(checkpoint: Path) -> SamplerDefaults:
    """Of generation_config.json, Gemma's where it says nothing. Raises MetadataError."""
    generation = read_object(checkpoint / _FILE)
    usual = SamplerDefaults()
    top_k = _number(generation, "top_k", usual.top_k or 0)
    if top_k != int(top_k):
        raise MetadataError(f"{_FILE}: top_k is {top_k}, expected a whole number; correct it")
    do_sample = generation.get("do_sample")
    if do_sample is not None and not isinstance(do_sample, bool):
        raise MetadataError(f"{_FILE}: do_sample is {do_sample!r}, expected true or false; correct it")
    temperature = _number(generation, "temperature", usual.temperature)
    return SamplerDefaults(
        top_k=int(top_k) or None,
        top_p=_number(generation, "top_p", usual.top_p),
        temperature=temperature,
        is_greedy=do_sample is False or temperature == 0,
    )


def settings_left_out(checkpoint: Path) -> dict[str, Any]:
    """What generation_config.json says besides: it changes replies in transformers, and LiteRT-LM's metadata has no
    place for it. By name; settings that are not known here are among them. Raises MetadataError.
    """
    found = {
        name: value
        for name, value in read_object(checkpoint / _FILE).items()
        if name not in _SAID | _WITHOUT_EFFECT
        and value is not None
        and value is not False
        and value not in ([], {}, *_OFF.get(name, ()))
    }
    return {name: value for name, value in found.items() if name not in _BEAMS or "num_beams" in found}


def repetition_penalty(checkpoint: Path) -> float:
    """Of generation_config.json; 1 is none. Raises MetadataError."""
    penalty = _number(read_object(checkpoint / _FILE), "repetition_penalty", 1.0)
    if penalty <= 0:
        raise MetadataError(f"{_FILE}: repetition_penalty is {penalty}, expected more than 0; correct it")
    return penalty


def stop_token_ids(
    checkpoint: Path, pieces: "sentencepiece.SentencePieceProcessor", turn_end: str = "<end_of_turn>"
) -> list[int]:
    """What ends a reply, each once, ascending.

    eos_token_id of generation_config.json, of config.json and of its text_config, a number or a list; the tokenizer's
    eos_token; Gemma's <eos>, <end_of_turn> and so on where it has them; and the token that the chat template writes
    behind a reply. turn_end: the text that it writes there.

    Raises MetadataError: an id outside the tokenizer; nothing that ends a turn.
    """
    unknown = pieces.unk_id()
    named = [*_ENDS, special_tokens(checkpoint).get("eos_token", ""), first_token(pieces, turn_end)]
    found = {text: pieces.piece_to_id(text) for text in named if text}
    stops = {number for number in found.values() if number != unknown}
    if not stops - {found.get("<eos>")} and turn_end.strip():
        raise MetadataError(
            f"tokenizer: has no piece {turn_end.strip()}, which ends a turn; "
            "use the tokenizer of an instruction-tuned Gemma, or add the chat template of this one"
        )
    return sorted(stops | set(_listed(checkpoint, pieces.vocab_size())))


def token_id(checkpoint: Path, pieces: "sentencepiece.SentencePieceProcessor", key: str, usual: str) -> int:
    """The id of a special token such as "bos_token", which a fine-tune may have given another name.

    Raises MetadataError: the tokenizer has no such piece.
    """
    for text in (special_tokens(checkpoint).get(key, usual), usual):
        number: int = pieces.piece_to_id(text)
        if number != pieces.unk_id():
            return number
    raise MetadataError(f"{checkpoint}: the tokenizer has no piece {usual} ({key}); use the one of the checkpoint")


def first_token(pieces: "sentencepiece.SentencePieceProcessor", text: str) -> str:
    """The token of its own that a text begins with, spaces aside; "" where it begins with ordinary text."""
    ids = pieces.encode(text.lstrip())
    piece = pieces.id_to_piece(ids[0]) if ids else ""
    return piece if len(piece) > 1 and text.lstrip().startswith(piece) and _is_marker(piece) else ""


def _is_marker(piece: str) -> bool:
    return piece[0] in "<[" and piece[-1] in ">]"


def suppressed_tokens(checkpoint: Path, pieces: "sentencepiece.SentencePieceProcessor") -> list[int]:
    """suppress_tokens of generation_config.json. Raises MetadataError: an id outside the tokenizer."""
    return list(_ids(read_object(checkpoint / _FILE), "suppress_tokens", _FILE, pieces.vocab_size()))


def _listed(checkpoint: Path, vocabulary_tokens: int) -> Iterator[int]:
    config = read_object(checkpoint / "config.json")
    nested = config.get("text_config")
    yield from _ids(read_object(checkpoint / _FILE), "eos_token_id", _FILE, vocabulary_tokens)
    for values in (config, nested if isinstance(nested, dict) else {}):
        yield from _ids(values, "eos_token_id", "config.json", vocabulary_tokens)


def _ids(values: Mapping[str, Any], key: str, name: str, vocabulary_tokens: int) -> Iterator[int]:
    listed = values.get(key)
    for number in listed if isinstance(listed, list) else [] if listed is None else [listed]:
        if type(number) is not int or not 0 <= number < vocabulary_tokens:
            raise MetadataError(f"{name}: {key} {number!r}, expected ids below {vocabulary_tokens}; correct it")
        yield number


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one where there is no file. Raises MetadataError naming it."""
    if not path.exists():
        return {}
    try:
        content = json.loads(read_plain(path))
    except (OSError, ValueError, RecursionError) as error:
        raise MetadataError(f"{path}: unreadable ({error}); download the file again") from error
    if not isinstance(content, dict):
        raise MetadataError(f"{path}: a {type(content).__name__}, expected an object; download the file again")
    return content


def _number(generation: Mapping[str, Any], name: str, default: float) -> float:
    value = generation.get(name)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise MetadataError(f"{_FILE}: {name} is {value!r}, expected a number; correct it")
    if not abs(value) <= _LARGEST:
        raise MetadataError(f"{_FILE}: {name} is {value!r}, expected at most {_LARGEST}; correct it")
    return value
