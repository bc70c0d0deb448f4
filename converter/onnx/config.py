"""The JSON files of an ONNX directory: what transformers.js and onnxruntime-genai read beside the graphs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sentencepiece

from gemma_edge.converter.checkpoint.checkpoint import read_json_object
from gemma_edge.converter.checkpoint.integers.packed import without_quantization
from gemma_edge.converter.models.questions import Names
from gemma_edge.converter.plan.plan import Plan
from gemma_edge.converter.tokenizer.chat_template import (
    BundleTemplate,
    onnx_template,
)
from gemma_edge.converter.tokenizer.generation import repetition_penalty, sampler_defaults, stop_token_ids, token_id
from gemma_edge.runtime.formats.onnx_dir import GRAPHS

Json = dict[str, Any]


def model_config(checkpoint: Path, names: Names, dtype: str, data_files: Mapping[str, int]) -> Json:
    """config.json: the text model's, named so that transformers.js (4.3.1, src/models/registry.js) finds it.

    data_files: how many data files each graph has. Gemma 3n is found by the name of its multimodal class only, which
    AutoModelForCausalLM then loads without encoders.
    """
    config = without_quantization(read_json_object(checkpoint / "config.json"))
    text = without_quantization(config.get("text_config", config))
    settings = {"dtype": dtype, "use_external_data_format": dict(data_files)}
    named: Json = {"architectures": [names.onnx_architecture], "model_type": names.onnx_model_type}
    if names.onnx_text_type is None:
        return {**text, **named, "transformers.js_config": settings}
    text = {**text, "model_type": names.onnx_text_type}
    return {**config, **named, "text_config": text, "transformers.js_config": settings}


def tokenizer_config(checkpoint: Path, names: Names) -> Json:
    """tokenizer_config.json with the chat template inside, where transformers.js looks for it.

    The checkpoint's own template, else ours for the family.
    """
    path = checkpoint / "tokenizer_config.json"
    config = read_json_object(path) if path.exists() else {}
    return {**config, "tokenizer_class": "GemmaTokenizer", "chat_template": onnx_template(checkpoint, names.template)}


def genai_config(plan: Plan, checkpoint: Path, graph_file: str, tokenizer: bytes, template: BundleTemplate) -> Json:
    """genai_config.json of a family that it knows (onnxruntime-genai 0.18, src/config.h)."""
    config = plan.model.config
    heads = config.attention[0].heads  # a family that it knows has but one kind
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    sampler = sampler_defaults(checkpoint)
    inputs = ("input_ids", "attention_mask", "position_ids")
    caches = {"past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"}
    presents = {"present_key_names": "present.%d.key", "present_value_names": "present.%d.value"}
    return {
        "model": {
            "type": plan.model.names.genai,
            "bos_token_id": token_id(checkpoint, pieces, "bos_token", "<bos>"),
            "eos_token_id": stop_token_ids(checkpoint, pieces, template.turns.model_suffix),
            "pad_token_id": token_id(checkpoint, pieces, "pad_token", "<pad>"),
            "context_length": plan.context_tokens,
            "vocab_size": config.vocab_size,
            "decoder": {
                "filename": f"{GRAPHS}/{graph_file}",
                "session_options": {"provider_options": []},
                "head_size": heads.size,
                "hidden_size": config.width,
                "num_attention_heads": heads.query,
                "num_key_value_heads": heads.kv,
                "num_hidden_layers": len(config.attention),
                "inputs": {name: name for name in inputs} | caches,
                "outputs": {"logits": "logits"} | presents,
            },
        },
        "search": {
            "max_length": plan.context_tokens,
            "do_sample": not sampler.is_greedy,
            "top_k": sampler.top_k or config.vocab_size,
            "top_p": sampler.top_p,
            "temperature": sampler.temperature or 1.0,
            "repetition_penalty": repetition_penalty(checkpoint),
            "past_present_share_buffer": True,
        },
    }
