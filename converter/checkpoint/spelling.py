"""How the tensors of a checkpoint are named: by transformers of several ages, and by what wrapped the model."""

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Final

from gemma_edge.converter.checkpoint.safetensors_file import TensorInfo
from gemma_edge.converter.printing import listed

# Decoder prefixes: multimodal since transformers 4.52, multimodal before it, text-only, a multimodal and a text model
# saved without head. "model." and "" stand behind those that begin with them, or below which encoders live as well.
DECODER_PREFIXES: Final = ("model.language_model.", "language_model.model.", "model.", "language_model.", "")
HEAD_NAMES: Final = ("lm_head.weight", "language_model.lm_head.weight")
EMBEDDING: Final = "embed_tokens.weight"
_ALWAYS: Final = "layers.0.input_layernorm.weight"

# What torch's DistributedDataParallel, Lightning's strategies, PEFT and TRL's value heads put before every name of the
# model that they hold; and what torch.compile, FSDP and activation checkpointing put anywhere, once for each layer.
_WRAPPERS: Final = ("module.", "_forward_module.", "base_model.model.", "pretrained_model.")
_INSIDE: Final = re.compile(r"(^|\.)(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+")

# Tensors that no model needs: buffers that older transformers saved although they follow from config.json, and the
# value head of TRL's PPO, which is not part of the language model.
LEFTOVERS: Final = (
    (re.compile(r"\.rotary_emb(_local)?\.inv_freq$"), "inv_freq (follows from config.json)"),
    (re.compile(r"(^|\.)embed_tokens\w*\.embed_scale$"), "embed_scale (follows from config.json)"),
    (re.compile(r"\.[kv]_cache_scale$"), "k_cache_scale, v_cache_scale (transformers reads neither)"),
    (re.compile(r"^v_head\."), "v_head (TRL's value head, for training)"),
)

_ADAPTERS: Final = (".lora_A.", ".lora_embedding_A.")


def unmerged(names: Collection[str]) -> str | None:
    """ "layers.0...lora_A.weight: an adapter ...", for an error; None where no adapter lies among the weights."""
    part = next((name for name in names if any(word in name for word in _ADAPTERS)), None)
    if part is None:
        return None
    return f"an adapter lies beside the weights ({part}); merge_and_unload() it with peft and save the model again"


def listed_with_verb(names: list[str]) -> str:
    """As `listed`: "a is", "a, b are"."""
    return f"{listed(names)} {'is' if len(names) == 1 else 'are'}"


def unwrapped(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Without the prefix of a wrapper, if every tensor has it, a value head aside; several may lie in one another."""
    found = {_INSIDE.sub(r"\1", name): tensor for name, tensor in tensors.items()}
    while (wrapper := _wrapper(found)) is not None:
        found = {name.removeprefix(wrapper): tensor for name, tensor in found.items()}
    return {name: tensor if tensor.name == name else replace(tensor, name=name) for name, tensor in found.items()}


def _wrapper(names: Collection[str]) -> str | None:
    held = [name for name in names if not name.startswith("v_head.")]
    for wrapper in _WRAPPERS:
        if held and all(name.startswith(wrapper) for name in held):
            return wrapper
    # Lightning's module calls the model that it holds "model", as transformers calls the decoder.
    is_held = any(name.startswith(("model.model.", "model.lm_head.")) for name in held)
    return "model." if is_held and all(name.startswith("model.") for name in held) else None


def decoder_prefix(tensors: Mapping[str, TensorInfo]) -> str | None:
    """What stands before the decoder's names; None where there is no decoder."""
    for wanted in (EMBEDDING, _ALWAYS):
        for prefix in DECODER_PREFIXES:
            if prefix + wanted in tensors:
                return prefix
    return None


def with_embedding(tensors: dict[str, TensorInfo], prefix: str) -> dict[str, TensorInfo]:
    """With a tied head that was saved alone under the name of the embedding, which is the same table."""
    head = next((tensors[name] for name in HEAD_NAMES if name in tensors), None)
    name = prefix + EMBEDDING
    if head is None or name in tensors:
        return tensors
    return {key: tensor for key, tensor in tensors.items() if tensor is not head} | {name: replace(head, name=name)}
