"""Tokens that a fine-tune added: cut out of a text before anything else, wherever the checkpoint lists them.

tokenizer.json has them among its `added_tokens`. Beside a tokenizer.model they are in added_tokens.json (name -> id)
and in tokenizer_config.json's added_tokens_decoder (id -> flags); transformers reads all three. `normalized` says
whether a token is looked for in the text or in what the normalizer makes of it. Gemma's only replaces spaces, so both
are one.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.profiles.plain_file import read_plain

_FLAGS = ("single_word", "lstrip", "rstrip")  # words and spaces that SentencePiece does not look at


class TokenizerError(GemmaEdgeError):
    """The checkpoint's tokenizer is missing, is not Gemma's kind, or its two spellings disagree."""


def added_tokens(
    checkpoint: Path, vocabulary_tokens: int, vocabulary: Mapping[str, int], in_json: Sequence[Mapping[str, Any]]
) -> dict[int, str]:
    """Id -> text of every added token with an embedding row.

    vocabulary, in_json: `vocab` and `added_tokens` of tokenizer.json; empty where there is none.
    Raises TokenizerError: an unreadable file, two texts for an id, a token that takes spaces or words beside it.
    """
    found: dict[int, str] = {}
    ids = {**vocabulary, **{token["content"]: token["id"] for token in in_json}}
    for path, number, token in _listed(checkpoint, in_json):
        text = token["content"]
        if not 0 <= number < vocabulary_tokens or ids.get(text, number) != number:
            continue  # another file's word for a token that tokenizer.json has elsewhere
        if number in found and path.name != "tokenizer.json" and ids:
            continue  # tokenizer.json has the last word
        if found.get(number, text) != text:
            raise TokenizerError(
                f"{path}: token {number} is {text!r} and {found[number]!r}; remove the one that does not belong there"
            )
        if flag := next((flag for flag in _FLAGS if token.get(flag)), None):
            raise TokenizerError(
                f"{path}: {flag} of the added token {text!r} is True, which SentencePiece cannot do; set it to false, "
                "as Gemma's own tokens have it"
            )
        found[number] = text
    return found


def _listed(checkpoint: Path, in_json: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Path, int, Mapping[str, Any]]]:
    """File, id and flags of each, tokenizer.json's first."""
    for token in in_json:
        yield checkpoint / "tokenizer.json", token["id"], token
    path = checkpoint / "added_tokens.json"
    for text, number in _object(path).items():
        if type(number) is not int:
            raise TokenizerError(f"{path}: the id of {text!r} is {number!r}, expected a number; correct it")
        yield path, number, {"content": text}
    path = checkpoint / "tokenizer_config.json"
    decoder = _object(path).get("added_tokens_decoder")
    for number, token in (decoder if isinstance(decoder, dict) else {}).items():
        if not number.isdecimal() or not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise TokenizerError(f"{path}: added_tokens_decoder has {number!r}: {str(token)[:40]}; correct it")
        yield path, int(number), token


def _object(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(read_plain(path))
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: unreadable ({error!r}); download the file again") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{path}: a {type(content).__name__}, expected an object; download the file again")
    return content
