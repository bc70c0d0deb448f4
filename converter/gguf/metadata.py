"""What a GGUF says beside its weights: the model's numbers, tokens, template, how to sample, what it is."""

from pathlib import Path
from typing import Final

import sentencepiece

from gemma_edge.converter.checkpoint.gguf.hyperparameters import hyperparameters
from gemma_edge.converter.checkpoint.gguf.vocabulary import chat_templates, special_ids, special_texts, vocabulary
from gemma_edge.converter.checkpoint.gguf.writer import Value
from gemma_edge.converter.gguf.blocks import type_of
from gemma_edge.converter.models.official import OFFICIAL
from gemma_edge.converter.plan.plan import Plan
from gemma_edge.converter.tensors import Role
from gemma_edge.converter.tokenizer.chat_template import BundleTemplate, gemma_text_template
from gemma_edge.converter.tokenizer.generation import sampler_defaults, stop_token_ids, token_id
from gemma_edge.converter.tokenizer.template_files import DEFAULT, checkpoint_templates

_FILE_TYPES: Final = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}  # llama.h, llama_ftype
_QUANTIZATION_VERSION: Final = 2  # GGML_QNT_VERSION


def metadata(plan: Plan, checkpoint: Path, tokenizer: bytes, template: BundleTemplate) -> dict[str, Value]:
    """Key -> value. tokenizer: a serialised SentencePiece model.

    Raises MetadataError: ids outside the tokenizer. ChatTemplateError: an unreadable template.
    """
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    ids = {
        "bos": token_id(checkpoint, pieces, "bos_token", "<bos>"),
        "unknown": pieces.unk_id(),
        "padding": token_id(checkpoint, pieces, "pad_token", "<pad>"),
    }
    ends = stop_token_ids(checkpoint, pieces, template.turns.model_suffix)
    templates = checkpoint_templates(checkpoint) or {DEFAULT: gemma_text_template()}
    return {
        **_general(plan),
        **hyperparameters(plan.model),
        **_sampling(checkpoint),
        **vocabulary(tokenizer, plan.model.config.vocab_size, special_texts(checkpoint)),
        **special_ids(ids, ends),
        **chat_templates(templates, DEFAULT),
    }


def _general(plan: Plan) -> dict[str, Value]:
    official = OFFICIAL.get(plan.target.size)
    name = plan.model.family if official is None else official.repository.rpartition("/")[2]
    kinds = {type_of(tensor.storage.encoding) for tensor in plan.tensors if tensor.spec.role is Role.FFN}
    kind = min(kinds, key=lambda kind: (kind[0] != "Q", kind)) if kinds else "F32"
    return {
        "general.type": Value("string", "model"),
        "general.name": Value("string", name),
        "general.file_type": Value("u32", _FILE_TYPES[kind]),
        "general.quantization_version": Value("u32", _QUANTIZATION_VERSION),
    }


def _sampling(checkpoint: Path) -> dict[str, Value]:
    """general.sampling.*, which llama.cpp takes where it is told nothing else."""
    sampler = sampler_defaults(checkpoint)
    top_k = 1 if sampler.is_greedy else sampler.top_k
    return ({} if top_k is None else {"general.sampling.top_k": Value("i32", top_k)}) | {
        "general.sampling.top_p": Value("f32", sampler.top_p),
        "general.sampling.temp": Value("f32", 0.0 if sampler.is_greedy else sampler.temperature),
    }
