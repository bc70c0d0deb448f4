"""A SentencePiece model and a chat template as metadata of a GGUF: what tokenizer.py reads again.

As conversion/base.py does (_create_vocab_sentencepiece): rows of the vocabulary that no token names are unused tokens;
added tokens have a space where SentencePiece has U+2581, and those that nobody shall read are control tokens.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from sentencepiece import sentencepiece_model_pb2 as proto

from gemma_edge.converter.checkpoint.gguf.writer import Value
from gemma_edge.converter.tokenizer.tokenizer import SPACE
from gemma_edge.profiles.plain_file import read_plain

_Piece = proto.ModelProto.SentencePiece
_CONTROL_LIKE: Final = ("<unused", "<start_of_turn>", "<end_of_turn>", "<mask>")  # does_token_look_special
_ADDED_SCORE, _UNUSED_SCORE = -1000.0, -10000.0


def vocabulary(tokenizer: bytes, rows: int, special: Collection[str]) -> dict[str, Value]:
    """tokenizer.ggml.* of a serialised SentencePiece model. rows: of the embedding, as many tokens as there are.

    special: texts of added tokens that transformers leaves out of a reply.
    """
    texts, scores, types = [f"[PAD{i}]" for i in range(rows)], [_UNUSED_SCORE] * rows, [int(_Piece.UNUSED)] * rows
    for number, piece in enumerate(proto.ModelProto.FromString(tokenizer).pieces):
        if piece.type == _Piece.UNUSED:
            continue
        texts[number], scores[number], types[number] = piece.piece, piece.score, piece.type
        if piece.type == _Piece.USER_DEFINED:
            is_control = piece.piece.startswith(_CONTROL_LIKE) or piece.piece in special
            texts[number], scores[number] = piece.piece.replace(SPACE, " "), _ADDED_SCORE
            types[number] = int(_Piece.CONTROL if is_control else _Piece.USER_DEFINED)
    return {
        "tokenizer.ggml.model": Value("string", "llama"),
        "tokenizer.ggml.pre": Value("string", "default"),
        "tokenizer.ggml.tokens": Value("string", texts),
        "tokenizer.ggml.scores": Value("f32", scores),
        "tokenizer.ggml.token_type": Value("i32", types),
        "tokenizer.ggml.add_bos_token": Value("bool", True),
        "tokenizer.ggml.add_eos_token": Value("bool", False),
        "tokenizer.ggml.add_space_prefix": Value("bool", False),
    }


def special_ids(ids: Mapping[str, int], ends: Sequence[int]) -> dict[str, Value]:
    """tokenizer.ggml.*_token_id. ids: by llama.cpp's word ("bos", "padding"). ends: of a text, and of a turn."""
    named = {**ids, **dict(zip(("eos", "eot", "eom"), ends, strict=False))}
    return {f"tokenizer.ggml.{name}_token_id": Value("u32", number) for name, number in named.items()}


def chat_templates(named: Mapping[str, str], default: str) -> dict[str, Value]:
    """tokenizer.chat_template, and those of other names behind it."""
    others = {name: source for name, source in named.items() if name != default}
    values = {"tokenizer.chat_template": Value("string", named[default])}
    if others:
        values["tokenizer.chat_templates"] = Value("string", list(others))
    return values | {f"tokenizer.chat_template.{name}": Value("string", text) for name, text in others.items()}


def special_texts(checkpoint: Path) -> frozenset[str]:
    """Texts of tokens that tokenizer_config.json marks special; none where there is no such file or list."""
    path = checkpoint / "tokenizer_config.json"
    decoder = json.loads(read_plain(path)).get("added_tokens_decoder") if path.exists() else None
    tokens = decoder.values() if isinstance(decoder, dict) else ()
    return frozenset(str(token.get("content")) for token in tokens if isinstance(token, dict) and token.get("special"))
