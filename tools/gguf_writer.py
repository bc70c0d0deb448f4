"""Write a GGUF of a Hugging Face directory, laid out as llama.cpp's converter does, quantized by the package gguf.

    python -m tools.gguf_writer DIRECTORY OUT.gguf [--type Q4_0] [--embedding-type Q8_0] [--split-tensors N]

For tests and for files to try: metadata, names and values follow conversion/gemma.py (stacked AltUp matrices, norms of
Gemma 3 with the 1 added, rows of the vocabulary cut at the tokenizer's end), types follow llama-quantize (vectors and
AltUp's small matrices stay F32). gguf cannot quantize K types.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import NormalDist
from typing import Any

import click
import gguf
import numpy as np
from numpy.typing import NDArray
from sentencepiece import sentencepiece_model_pb2 as proto

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.models import gemma3, gemma3n
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.plan.plan import MEDIA_PREFIXES
from gemma_edge.converter.tokenizer.template_files import checkpoint_templates
from gemma_edge.converter.tokenizer.tokenizer import SPACE, sentencepiece_model
from tools.gguf_oracle import gguf_name, name_table

Float32 = NDArray[np.float32]
_Piece = proto.ModelProto.SentencePiece

_CONTROL = ("<unused", "<start_of_turn>", "<end_of_turn>", "<mask>")  # of added tokens, those that are special
_KEPT = ("altup", "laurel", "per_layer_model_proj")  # llama-quantize leaves these alone


def write_gguf(
    directory: Path,
    out: Path,
    kind: str = "F16",
    *,
    embedding_kind: str | None = None,
    kept_kind: str = "F32",
    split_tensors: int = 0,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write `out`, or parts of it beside its name with at most `split_tensors` tensors each.

    kind: of matrices; embedding_kind: of the embedding tables, `kind` if None; kept_kind: of those that llama-quantize
    leaves alone. metadata: further texts and integers by key.
    Raises NotImplementedError for a type that gguf cannot quantize, ValueError for what llama.cpp has no word for.
    """
    checkpoint = Checkpoint.open(directory)
    model = Model.from_json(checkpoint.text_config)
    writer = gguf.GGUFWriter(out, model.family, split_max_tensors=split_tensors)
    _add_hyperparameters(writer, model)
    tokens = _add_tokenizer(writer, directory, model)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"])
    for key, value in (metadata or {}).items():
        writer.add_string(key, value) if isinstance(value, str) else writer.add_uint32(key, value)
    for name, values in _tensors(checkpoint, model, tokens):
        chosen = kind
        if values.ndim == 1 or any(word in name for word in ("norm", "_coef", "_scale")):
            chosen = "F32"
        elif any(word in name for word in _KEPT):
            chosen = kept_kind
        elif "token_embd" in name:
            chosen = embedding_kind or kind
        qtype = gguf.GGMLQuantizationType[chosen]
        if values.shape[-1] % gguf.GGML_QUANT_SIZES[qtype][0]:
            qtype = gguf.GGMLQuantizationType.F16  # llama-quantize falls back as well
        writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(values), qtype), raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_hyperparameters(writer: Any, model: Model) -> None:
    c = model.config
    assert isinstance(c, gemma3.Config | gemma3n.Config), c
    layers, heads = len(c.attention), c.attention[0].heads
    if isinstance(c, gemma3.Config) and c.query_scale != heads.size**-0.5:
        raise ValueError("query_pre_attn_scalar: llama.cpp scales by the size of a head")
    writer.add_type("model")
    writer.add_name("tiny")
    writer.add_context_length(c.max_context_tokens)
    writer.add_embedding_length(c.width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(c.ffn_width if isinstance(c, gemma3.Config) else list(c.ffn_widths))
    writer.add_head_count(heads.query)
    writer.add_head_count_kv(heads.kv)
    writer.add_key_length(heads.size)
    writer.add_value_length(heads.size)
    writer.add_layer_norm_rms_eps(c.eps)
    full = next(layer.rope for layer in c.attention if layer.window is None)
    writer.add_rope_freq_base(full.theta)
    writer.add_rope_freq_base_swa(next(layer.rope for layer in c.attention if layer.window is not None).theta)
    if c.softcap is not None:
        writer.add_final_logit_softcapping(c.softcap)
    if full.factor != 1.0:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(full.factor)
    writer.add_sliding_window(next(layer.window for layer in c.attention if layer.window is not None))
    slides = [layer.window is not None for layer in c.attention]
    if isinstance(c, gemma3n.Config):
        writer.add_altup_active_idx(c.altup_active)
        writer.add_altup_num_inputs(c.altup_inputs)
        writer.add_embedding_length_per_layer_input(c.ple_width)
        writer.add_shared_kv_layers(layers - c.kv_layers)
        scales = [float(np.float32(NormalDist().inv_cdf(p))) if p else float("-inf") for p in c.sparsity]
        writer.add_activation_sparsity_scale(scales)
        writer.add_sliding_window_pattern(slides)
    elif slides != [(i + 1) % 6 != 0 for i in range(layers)]:
        writer.add_sliding_window_pattern(slides)


def _add_tokenizer(writer: Any, directory: Path, model: Model) -> int:
    """Returns how many tokens there are, which is how many rows llama.cpp keeps."""
    c = model.config
    rows = c.ple_vocab_size if isinstance(c, gemma3n.Config) else c.vocab_size
    pieces = proto.ModelProto.FromString(sentencepiece_model(directory, rows)).pieces
    texts, scores, types = [f"[PAD{i}]" for i in range(rows)], [-10000.0] * rows, [int(_Piece.UNUSED)] * rows
    for number, piece in enumerate(pieces):
        texts[number], scores[number], types[number] = piece.piece, piece.score, piece.type
        if piece.type == _Piece.USER_DEFINED:
            texts[number], scores[number] = piece.piece.replace(SPACE, " "), -1000.0
            types[number] = _Piece.CONTROL if piece.piece.startswith(_CONTROL) else _Piece.USER_DEFINED
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(texts)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    path = directory / "generation_config.json"
    ends = json.loads(path.read_bytes()).get("eos_token_id", 1) if path.exists() else 1
    ends = ends if isinstance(ends, list) else [ends]
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(ends[0])
    if len(ends) > 1:
        writer.add_eot_token_id(ends[1])
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    if templates := checkpoint_templates(directory):
        writer.add_chat_template(templates["default"])
    return rows


def _tensors(checkpoint: Checkpoint, model: Model, tokens: int) -> Iterator[tuple[str, Float32]]:
    """Name and values of each tensor, the slowest axis first; names by gguf's own table."""
    c = model.config
    table = name_table(model)
    stacks: dict[str, list[Float32]] = {}
    for stored in checkpoint.tensors.values():
        source = stored.name.removeprefix(checkpoint.prefix).removeprefix("model.")
        if source.startswith(MEDIA_PREFIXES) or (source.endswith("lm_head.weight") and c.tied_head):
            continue
        values = checkpoint.read("lm_head.weight" if source.endswith("lm_head.weight") else source)
        if source.startswith("altup_"):
            stacks.setdefault(source.split(".")[0], []).append(values)
            continue
        if source in ("embed_tokens.weight", "embed_tokens_per_layer.weight"):
            values = values[:tokens]
        if isinstance(c, gemma3.Config) and source.endswith("norm.weight"):
            values = values + np.float32(1)
        yield gguf_name(table, source), values
    for source, matrices in stacks.items():
        yield gguf_name(table, f"{source}.weight"), np.stack(matrices)  # [N-1, D, D]


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--type", "kind", default="F16", show_default=True, help="Of matrices.")
@click.option("--embedding-type", "embedding_kind", help="Of the embedding tables.")
@click.option("--split-tensors", default=0, help="Tensors in each part; 0 for one file.")
def main(directory: Path, out: Path, kind: str, embedding_kind: str | None, split_tensors: int) -> None:
    """Write OUT from the checkpoint in DIRECTORY."""
    write_gguf(directory, out, kind, embedding_kind=embedding_kind, split_tensors=split_tensors)


if __name__ == "__main__":
    main()
