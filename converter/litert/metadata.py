"""What LiteRT-LM must know about a model beside its weights: the LlmMetadata and ExecutorMetadata sections.

Field by field as in Google's published bundles and LiteRT-LM's runtime/util/model_type_utils.cc. Token ids are given as
ids, never as text: a text would go through the tokenizer, which never makes "<bos>" from text.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import sentencepiece
from litert_lm_builder.runtime.proto.executor_metadata_pb2 import ExecutorMetadata, StateBuffer
from litert_lm_builder.runtime.proto.llm_metadata_pb2 import LlmMetadata
from litert_lm_builder.runtime.proto.sampler_params_pb2 import SamplerParameters

from gemma_edge.converter.litert.media_metadata import FrontEnd, generic_model
from gemma_edge.converter.tokenizer.chat_template import bundle_template
from gemma_edge.profiles.errors import GemmaEdgeError

TURN_START, TURN_END = "<start_of_turn>", "<end_of_turn>"
_LARGEST = 2**31 - 1  # what an int32 of the metadata holds; more is no sampler's setting


class MetadataError(GemmaEdgeError):
    """generation_config.json or the tokenizer says something that cannot be."""


@dataclass(frozen=True)
class SamplerDefaults:
    """How to sample unless the application says otherwise. A temperature of 0 is greedy."""

    top_k: int = 64  # these three are generation_config.json of google/gemma-3-1b-it and google/gemma-3n-E2B-it
    top_p: float = 0.95
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise MetadataError(f"generation_config.json: top_k is {self.top_k}, expected at least 1; correct it")
        if not 0 < self.top_p <= 1:
            raise MetadataError(f"generation_config.json: top_p is {self.top_p}, expected 0 < top_p <= 1; correct it")
        if not 0 <= self.temperature < math.inf:
            raise MetadataError(
                f"generation_config.json: temperature is {self.temperature}, expected 0 or more; correct it"
            )


@dataclass(frozen=True)
class CacheBuffer:
    """One layer's KV cache: kv_cache_k_{index} [1, K, slots, E] and kv_cache_v_{index} [1, K, E, slots].

    local: belongs to a sliding-window layer; with fewer slots than the context it is a ring.
    """

    index: int
    local: bool
    slots: int


def llm_metadata(
    checkpoint: Path,
    family: Literal["gemma3", "gemma3n"],
    context_tokens: int,
    tokenizer: bytes,
    image_pixels: int | None = None,
    takes_audio: bool = False,
) -> bytes:
    """A serialised LlmMetadata: tokens, chat template, sampler defaults, model type, context length.

    image_pixels: width and height of images; None where the model takes none.
    tokenizer: the bundle's SentencePiece model (`tokenizer.sentencepiece_model`); every id is checked against it.
    Raises MetadataError: an id outside the tokenizer, a sampler value out of range. ChatTemplateError: see there.
    """
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    sampler = _sampler_defaults(_generation_config(checkpoint))
    template = bundle_template(checkpoint)

    metadata = LlmMetadata(max_num_tokens=context_tokens, jinja_prompt_template=template)
    metadata.start_token.token_ids.ids.append(pieces.bos_id())
    metadata.pad_token.token_ids.ids.append(pieces.pad_id())
    for number in stop_token_ids(checkpoint, pieces):
        metadata.stop_tokens.add().token_ids.ids.append(number)
    # Used where LiteRT-LM formats a turn without the template (its Session with apply_prompt_template).
    for affixes, role in ((metadata.prompt_templates.user, "user"), (metadata.prompt_templates.model, "model")):
        affixes.prefix, affixes.suffix = f"{TURN_START}{role}\n", f"{TURN_END}\n"
    metadata.sampler_params.CopyFrom(
        SamplerParameters(
            type=SamplerParameters.TOP_P if sampler.temperature else SamplerParameters.GREEDY,
            k=sampler.top_k,
            p=sampler.top_p,
            temperature=sampler.temperature,
        )
    )
    model_type = metadata.llm_model_type  # chooses the data processor; its defaults are Gemma's
    if takes_audio:
        model_type.generic_model.CopyFrom(generic_model(FrontEnd.read(checkpoint), image_pixels))
    else:
        getattr(model_type, family).SetInParent()
        if image_pixels is not None:
            model_type.gemma3n.image_tensor_height = model_type.gemma3n.image_tensor_width = image_pixels
    metadata.supports_thinking = False
    metadata.supports_function_calling = "tools" in template
    data: bytes = metadata.SerializeToString(deterministic=True)
    return data


def stop_token_ids(checkpoint: Path, pieces: sentencepiece.SentencePieceProcessor) -> list[int]:
    """<eos>, <end_of_turn> and what generation_config.json lists under eos_token_id; each once, ascending.

    Raises MetadataError: an id outside the tokenizer, a tokenizer without <end_of_turn>.
    """
    turn_end = pieces.piece_to_id(TURN_END)
    if turn_end == pieces.unk_id():
        raise MetadataError(f"tokenizer: has no piece {TURN_END}; use the tokenizer of an instruction-tuned Gemma")
    listed = _generation_config(checkpoint).get("eos_token_id")
    listed = listed if isinstance(listed, list) else [] if listed is None else [listed]
    for number in listed:
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < pieces.vocab_size():
            raise MetadataError(
                f"generation_config.json: eos_token_id {number!r}, expected ids below {pieces.vocab_size()}; correct it"
            )
    return sorted({pieces.eos_id(), turn_end, *listed})


def executor_metadata(caches: Sequence[CacheBuffer], context_tokens: int) -> bytes:
    """A serialised ExecutorMetadata describing the KV caches.

    Needed for rings: without it, or with a ring declared global, LiteRT-LM takes the shortest cache for the context.
    """
    metadata = ExecutorMetadata()
    executor = metadata.llm_executor_metadata
    executor.max_history_size = context_tokens
    for cache in caches:
        for letter, sequence_axis in (("k", 2), ("v", 3)):  # K [1, K, slots, E], V [1, K, E, slots]
            name = f"kv_cache_{letter}_{cache.index}"
            executor.state_buffers.add(
                prefill_input_name=name,
                prefill_output_name=name,
                decode_input_name=name,
                decode_output_name=name,
                type=_STATE_TYPES[letter, cache.local],
                sequence_axis=sequence_axis,
                maximum_sequence_length=cache.slots,
            )
    data: bytes = metadata.SerializeToString(deterministic=True)
    return data


_STATE_TYPES = {
    ("k", False): StateBuffer.TYPE_GLOBAL_KEY_CACHE,
    ("v", False): StateBuffer.TYPE_GLOBAL_VALUE_CACHE,
    ("k", True): StateBuffer.TYPE_LOCAL_KEY_CACHE,
    ("v", True): StateBuffer.TYPE_LOCAL_VALUE_CACHE,
}


def _generation_config(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / "generation_config.json"
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise MetadataError(f"{path}: unreadable ({error}); download the file again") from error
    if not isinstance(content, dict):
        raise MetadataError(f"{path}: a {type(content).__name__}, expected an object; download the file again")
    return content


def _sampler_defaults(generation: dict[str, Any]) -> SamplerDefaults:
    def number(name: str, default: float) -> float:
        value = generation.get(name)
        if value is None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise MetadataError(f"generation_config.json: {name} is {value!r}, expected a number; correct it")
        if not abs(value) <= _LARGEST:
            raise MetadataError(f"generation_config.json: {name} is {value!r}, expected at most {_LARGEST}; correct it")
        return value

    usual = SamplerDefaults()
    return SamplerDefaults(
        top_k=int(number("top_k", usual.top_k)),
        top_p=number("top_p", usual.top_p),
        temperature=number("temperature", usual.temperature),
    )
