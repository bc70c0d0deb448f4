"""What LiteRT-LM must know about a model beside its weights: the LlmMetadata and ExecutorMetadata sections.

Field by field as in Google's published bundles and LiteRT-LM's runtime/util/model_type_utils.cc. Token ids are given as
ids, never as text: a text would go through the tokenizer, which never makes "<bos>" from text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
from litert_lm_builder.runtime.proto.executor_metadata_pb2 import ExecutorMetadata, StateBuffer
from litert_lm_builder.runtime.proto.llm_metadata_pb2 import LlmMetadata
from litert_lm_builder.runtime.proto.sampler_params_pb2 import SamplerParameters

from gemma_edge.converter.litert.media_metadata import FrontEnd, generic_model
from gemma_edge.converter.models.gemma4_encoders.vision import Config as Patches
from gemma_edge.converter.tokenizer.chat_template import BundleTemplate, bundle_template
from gemma_edge.converter.tokenizer.generation import sampler_defaults, stop_token_ids, suppressed_tokens, token_id


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
    model_type: str,
    context_tokens: int,
    tokenizer: bytes,
    image_pixels: int | None = None,
    takes_audio: bool = False,
    template: BundleTemplate | None = None,
    patches: Patches | None = None,
) -> bytes:
    """A serialised LlmMetadata: tokens, chat template, sampler defaults, model type, context length.

    model_type: LiteRT-LM's name of the family.
    image_pixels: width and height of images; None where the model takes none, or cuts them into patches, as `patches`
    says.
    tokenizer: the bundle's SentencePiece model (`tokenizer.sentencepiece_model`); every id is checked against it.
    template: None finds it (`bundle_template`).
    Raises MetadataError: an id outside the tokenizer, a sampler value out of range. ChatTemplateError: see there.
    """
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    sampler = sampler_defaults(checkpoint)
    template = template or bundle_template(checkpoint, media(image_pixels or patches, takes_audio))

    metadata = LlmMetadata(max_num_tokens=context_tokens, jinja_prompt_template=template.source)
    if template.starts:
        metadata.start_token.token_ids.ids.append(token_id(checkpoint, pieces, "bos_token", "<bos>"))
    metadata.pad_token.token_ids.ids.append(token_id(checkpoint, pieces, "pad_token", "<pad>"))
    for number in stop_token_ids(checkpoint, pieces, template.turns.model_suffix):
        metadata.stop_tokens.add().token_ids.ids.append(number)
    metadata.suppress_tokens.ids.extend(suppressed_tokens(checkpoint, pieces))
    # Used where LiteRT-LM formats a turn without the template (its Session with apply_prompt_template).
    turns, affixes = template.turns, metadata.prompt_templates
    affixes.user.prefix, affixes.user.suffix = turns.user_prefix, turns.user_suffix
    affixes.model.prefix, affixes.model.suffix = turns.model_prefix, turns.model_suffix
    metadata.sampler_params.CopyFrom(
        SamplerParameters(
            type=SamplerParameters.GREEDY if sampler.is_greedy else SamplerParameters.TOP_P,
            k=sampler.top_k or pieces.vocab_size(),  # 0 would be refused: all of them is off
            p=sampler.top_p,
            temperature=sampler.temperature,
        )
    )
    kind = metadata.llm_model_type  # chooses the data processor; its defaults are Gemma's
    has_own_tools = template.shows_tools and not template.is_gemmas
    if model_type == _GEMMA4:
        _describe_gemma4(metadata, template, patches)
    elif takes_audio or (has_own_tools and image_pixels is not None):
        front_end = FrontEnd.read(checkpoint) if takes_audio else None
        kind.generic_model.CopyFrom(generic_model(front_end, image_pixels))
    elif has_own_tools:  # the one processor that leaves tools and calls as they are, and reads calls
        processor = kind.function_gemma
        processor.use_template_for_fc_format = True
        if template.calls is not None:
            processor.code_fence_start, processor.code_fence_end = template.calls.start, template.calls.end
            processor.syntax_type = template.calls.notation
    else:
        chosen = getattr(kind, model_type)
        chosen.SetInParent()
        if image_pixels is not None:
            chosen.image_tensor_height = chosen.image_tensor_width = image_pixels
    metadata.supports_thinking = bool(metadata.channels)
    metadata.supports_function_calling = template.shows_tools
    data: bytes = metadata.SerializeToString(deterministic=True)
    return data


def _describe_gemma4(metadata: LlmMetadata, template: BundleTemplate, patches: Patches | None) -> None:
    """Fences of calls, as litert-torch writes them, how an image is cut, and the channel of thoughts where the template
    asks for any."""
    kind = metadata.llm_model_type.gemma4
    kind.SetInParent()
    if template.calls is not None:
        kind.code_fence_start, kind.code_fence_end = template.calls.start, template.calls.end
        kind.syntax_type = template.calls.notation
        kind.open_quote = kind.close_quote = '<|"|>'
        kind.function_response_start = "<|tool_response>"
    if patches is not None:
        kind.patch_width = kind.patch_height = patches.patch
        kind.max_num_patches, kind.pooling_kernel_size = patches.patches, patches.pool
    if template.thinks:
        metadata.channels.add(channel_name="thought", start="<|channel>thought\n", end="<channel|>")


_GEMMA4 = "gemma4"  # the one that thinks


def media(images: object | None, takes_audio: bool) -> tuple[str, ...]:
    """What a model takes beside text, as templates call it."""
    return (*(() if images is None else ("image",)), *(("audio",) if takes_audio else ()))


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
