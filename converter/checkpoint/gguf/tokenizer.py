"""tokenizer.json and chat template of a GGUF, from its metadata.

llama.cpp keeps a SentencePiece model as three lists: the pieces' texts, scores and types (conversion/base.py,
_create_vocab_sentencepiece). Those merge by score; tokenizer.json ranks pairs instead, and it is what Hugging Face's
checkpoints have, what transformers.js reads, and what `tokenizer.sentencepiece_model` checks and proves a model equal
to. So a tokenizer.json is made: the pairs that spell a piece follow each other, the piece of the highest score first.
With scores that differ, both merge the same neighbours first, whatever the text; equal ones are refused.

Tokens of the types control and user-defined are cut out of a text before, so they are added tokens. llama.cpp writes a
space in these where SentencePiece has U+2581. Of runs of spaces tokenizer.json makes tokens by merging, as added tokens
are looked for in the text itself; their pairs come first there, the longest before all (google/gemma-3-*). Unused
tokens at the end only fill up the embedding table; those before it are words that no pair spells.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from gemma_edge.converter.checkpoint.safetensors_file import CheckpointError
from gemma_edge.converter.tokenizer.tokenizer import CONTROL, SPACE, UNKNOWN

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # gguf constants.py, TokenType
_ADDED: Final = (_UNKNOWN, _CONTROL, _USER_DEFINED)
_IDS: Final = {"bos": "<bos>", "unknown": "<unk>", "padding": "<pad>"}
_TURNS: Final = ("<start_of_turn>", "<end_of_turn>")
_TEMPLATE: Final = "tokenizer.chat_template"


@dataclass(frozen=True)
class _Vocabulary:
    """Texts, scores and types by id, without the unused tokens behind the last that is used."""

    texts: Sequence[str]
    scores: Sequence[float]
    types: Sequence[int]


def derived_tokenizer(file: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The object of a tokenizer.json.

    Raises CheckpointError: no tokenizer, another kind than Gemma's, lists that contradict each other, two pieces of
    equal score.
    """
    _check_kind(file, metadata)
    vocabulary = _vocabulary(file, metadata)
    ids = {text: number for number, text in enumerate(vocabulary.texts)}
    if len(ids) < len(vocabulary.texts):
        twice = next(text for number, text in enumerate(vocabulary.texts) if ids[text] != number)
        raise CheckpointError(f"{file}: the token {twice!r} is listed twice; expected different ones: correct the file")
    for text, number in (CONTROL | UNKNOWN).items():
        if ids.get(text) != number:
            raise CheckpointError(
                f"{file}: the id of {text} is {ids.get(text)}, expected {number}; not a Gemma tokenizer"
            )
    added = [
        {
            "id": number, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": kind != _USER_DEFINED,
        }
        for number, (text, kind) in enumerate(zip(vocabulary.texts, vocabulary.types, strict=True))
        if kind in _ADDED
    ]  # fmt: skip
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": None,
        "post_processor": _post_processor(metadata.get("tokenizer.ggml.add_bos_token", True)),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": ids, "merges": list(_merges(file, vocabulary, ids)),
        },
    }  # fmt: skip


def derived_template(file: Path, metadata: Mapping[str, Any]) -> str | None:
    """The chat template, if there is one. Raises CheckpointError where it is no text."""
    template = metadata.get(_TEMPLATE)
    if not isinstance(template, str | None):
        raise CheckpointError(f"{file}: {_TEMPLATE} is {str(template)[:40]!r}, expected a text; correct the file")
    return template


def _check_kind(file: Path, metadata: Mapping[str, Any]) -> None:
    expected: dict[str, tuple[Any, ...]] = {
        "tokenizer.ggml.model": ("llama",),
        "tokenizer.ggml.pre": ("default", None),
        "tokenizer.ggml.add_space_prefix": (False, None),  # as every Gemma: its normalizer adds none
        "tokenizer.ggml.remove_extra_whitespaces": (False, None),
        "tokenizer.ggml.precompiled_charsmap": (None,),
        **{f"tokenizer.ggml.{name}_token_id": ((CONTROL | UNKNOWN)[text], None) for name, text in _IDS.items()},
    }
    for key, allowed in expected.items():
        if metadata.get(key) not in allowed:
            raise CheckpointError(
                f"{file}: {key} is {str(metadata.get(key))[:40]!r}, expected {allowed[0]!r}; not a Gemma tokenizer"
            )


def _vocabulary(file: Path, metadata: Mapping[str, Any]) -> _Vocabulary:
    lists = {}
    for name, kind in (("tokens", str), ("scores", float), ("token_type", int)):
        values = metadata.get(f"tokenizer.ggml.{name}")
        if not isinstance(values, list) or not all(type(value) is kind for value in values):
            raise CheckpointError(
                f"{file}: tokenizer.ggml.{name} is missing, or no list of {kind.__name__}; "
                "convert the model anew with llama.cpp"
            )
        lists[name] = values
    texts, scores, types = lists["tokens"], lists["scores"], lists["token_type"]
    if not len(texts) == len(scores) == len(types):
        raise CheckpointError(
            f"{file}: {len(texts)} tokens, {len(scores)} scores and {len(types)} types, expected as many of each; "
            "convert the model anew with llama.cpp"
        )
    used = next((number + 1 for number in reversed(range(len(types))) if types[number] != _UNUSED), 0)
    for number, kind in enumerate(types[:used]):
        is_filler = kind == _UNUSED and texts[number] == f"[PAD{number}]"  # between tokens of images and audio
        if not _NORMAL <= kind <= _BYTE or (kind == _UNUSED and not is_filler):
            raise CheckpointError(
                f"{file}: token {number} is of type {kind}, expected a used one of {_NORMAL} to {_BYTE}; "
                "not a Gemma tokenizer"
            )
    # Some files call them normal; llama.cpp overrides that as well (llama-vocab.cpp, "control-looking token").
    types = [_CONTROL if text in _TURNS else kind for text, kind in zip(texts[:used], types[:used], strict=True)]
    spelled = [
        text.replace(" ", SPACE) if kind in _ADDED else text for text, kind in zip(texts[:used], types, strict=True)
    ]
    return _Vocabulary(spelled, scores[:used], types)


def _merges(file: Path, vocabulary: _Vocabulary, ids: Mapping[str, int]) -> Iterator[list[str]]:
    """Every pair of tokens that spells a run of spaces, then a normal one, those of the highest score first."""
    runs = (text for text, kind in zip(vocabulary.texts, vocabulary.types, strict=True) if kind in _ADDED)
    pairs = [pair for text in runs if not text.strip(SPACE) for pair in _splits(text, ids)]
    yield from (list(pair) for pair in sorted(pairs, key=lambda pair: (-len(pair[0]), -len(pair[1]))))
    normal = [number for number, kind in enumerate(vocabulary.types) if kind == _NORMAL]
    made = []
    for number in sorted(normal, key=lambda number: -vocabulary.scores[number]):
        if splits := _splits(vocabulary.texts[number], ids):
            made.append(number)
            # As transformers' converter orders the pairs of one piece.
            yield from (list(pair) for pair in sorted(splits, key=lambda pair: (ids[pair[0]], ids[pair[1]])))
    for before, after in pairwise(made):
        if not vocabulary.scores[before] > vocabulary.scores[after]:
            raise CheckpointError(
                f"{file}: the tokens {vocabulary.texts[before]!r} and {vocabulary.texts[after]!r} have the score "
                f"{vocabulary.scores[after]:g}, so which is merged first is unknown; expected different scores"
            )


def _splits(text: str, ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every pair of tokens that spells `text`."""
    return [(text[:i], text[i:]) for i in range(1, len(text)) if text[:i] in ids and text[i:] in ids]


def _post_processor(adds_bos: bool) -> dict[str, Any] | None:
    if not adds_bos:
        return None
    bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            bos,
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "<bos>", "type_id": 1}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [CONTROL["<bos>"]], "tokens": ["<bos>"]}},
    }


def tokenizer_json(content: Mapping[str, Any]) -> bytes:
    """A tokenizer.json as it is written."""
    return json.dumps(content, ensure_ascii=False).encode()
