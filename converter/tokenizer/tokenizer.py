"""The bundle's SentencePiece model: the checkpoint's own, or one derived from its tokenizer.json.

LiteRT-LM reads both kinds of tokenizer, but a tokenizer.json of Gemma's size costs it about 400 MB and 8 s at load, the
same vocabulary as a SentencePiece model 97 MB and 0.5 s. Checkpoints fine-tuned elsewhere often lack tokenizer.model.

Why a derived model segments alike. Both are BPE: merge the best adjacent pair until none is left.
- tokenizer.json ranks pairs; SentencePiece scores merged pieces, and any two neighbours that spell one may merge. The
  two orders are one if the ranks of a piece's pairs are not interleaved with another's and no pair is missing,
  which `_scores` checks; the score is then minus the piece's rank, as in Google's own tokenizer.model.
- Added tokens are cut out of the text first; SentencePiece does that with USER_DEFINED pieces.
- Where two overlapping pairs spell the same piece, one prefers the lower rank and the other the leftmost. Nothing but
  a trial settles that: `prove_equal` makes it.
Two exceptions, which Gemma's original tokenizer.model shares: the literal texts "<bos>" and "<unk>" are control tokens
to tokenizer.json and plain text to SentencePiece, and a literal U+2581 beside a space is one run of spaces to the
latter.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2 as proto

from gemma_edge.converter.tokenizer.added_tokens import TokenizerError, added_tokens
from gemma_edge.profiles.plain_file import read_plain

SPACE = "\u2581"  # SentencePiece writes a space as LOWER ONE EIGHTH BLOCK
CONTROL = {"<pad>": 0, "<eos>": 1, "<bos>": 2}  # never produced from text
UNKNOWN = {"<unk>": 3}
_BYTES = {f"<0x{byte:02X}>" for byte in range(256)}
_SPACE_NORMALIZER = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_SPACE_SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}

_Piece = proto.ModelProto.SentencePiece


def sentencepiece_model(checkpoint: Path, vocabulary_tokens: int, written: Collection[str] = ()) -> bytes:
    """A serialised SentencePiece ModelProto for the checkpoint in that directory.

    Added tokens, wherever the checkpoint lists them (see added_tokens.py), become pieces that are cut out of a text:
    those behind the vocabulary proper (Gemma 3n's image and audio tokens) with UNUSED fillers for ids between them,
    those that rename a piece ("<unused0>" to "<think>") in its place. Those at or above vocabulary_tokens, which have
    no embedding row (Gemma 3 1B lists <image_soft_token>), are left out: such text is then spelled in ordinary pieces.

    vocabulary_tokens: rows of the embedding table; every id is below it. written: control tokens such as "<eos>" that
    prompts spell, and that are therefore to be found in text.
    Raises TokenizerError: neither file present, unreadable, not a Gemma BPE tokenizer, the two files disagree, a
    derived model that segments differently, more pieces than embedding rows.
    """
    known = tuple(_stamp(path) for path in sorted(checkpoint.glob("*token*")))
    return _made(checkpoint, vocabulary_tokens, frozenset(written), known)


def _stamp(path: Path) -> tuple[int, int, int]:
    """What changes with a file; nothing of one that cannot be read, which whoever reads it will say."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0, 0
    return status.st_ino, status.st_size, status.st_mtime_ns


@lru_cache(maxsize=2)  # a conversion asks up to three times, and it takes seconds
def _made(
    checkpoint: Path, vocabulary_tokens: int, written: frozenset[str], _known: tuple[tuple[int, int, int], ...]
) -> bytes:
    model_path, json_path = checkpoint / "tokenizer.model", checkpoint / "tokenizer.json"
    source = _read_json(json_path) if json_path.exists() else None
    added = added_tokens(
        checkpoint,
        vocabulary_tokens,
        {} if source is None else source.vocabulary,
        () if source is None else source.settings["added_tokens"],
    )
    if model_path.exists():
        model = _read_model(model_path)
        if source is not None:
            _check_agreement(model, source, model_path)
    elif source is not None:
        model = _derive(source, json_path)
    else:
        raise TokenizerError(f"{checkpoint}: has neither tokenizer.model nor tokenizer.json; add one of them")
    if len(model.pieces) > vocabulary_tokens:
        raise TokenizerError(
            f"{checkpoint}: the tokenizer has {len(model.pieces)} pieces, the model {vocabulary_tokens} embedding rows"
            "; use the tokenizer that belongs to the checkpoint"
        )
    _place_added(model, added)
    for piece in model.pieces:
        if piece.piece in written:
            piece.type = _Piece.USER_DEFINED
    model.trainer_spec.vocab_size = len(model.pieces)
    data: bytes = model.SerializeToString(deterministic=True)
    if source is not None and not model_path.exists():
        del source  # 200 MB at Gemma's size
        prove_equal(data, json_path, SAMPLES)
    return data


def prove_equal(model: bytes, tokenizer_json: Path, samples: Iterable[str]) -> None:
    """Raises TokenizerError unless both tokenizers give the same ids for every sample and spell them alike."""
    import tokenizers

    texts = list(samples)
    content = json.loads(read_plain(tokenizer_json))
    # Only a merge that spells something in the samples can happen; loading the other half million takes 400 MB.
    everything = "\n".join(texts).replace(" ", SPACE)
    pairs = [_pair(merge) for merge in content["model"]["merges"]]
    longest = max((len(left) + len(right) for left, right in pairs), default=0)
    spelled = {everything[i : i + n] for n in range(2, longest + 1) for i in range(len(everything) - n + 1)}
    content["model"]["merges"] = [pair for pair in pairs if pair[0] + pair[1] in spelled]
    del pairs, spelled
    content["truncation"] = content["padding"] = None  # of whoever trained with it: transformers switches both off
    try:
        original = tokenizers.Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # tokenizers has no class of its own
        raise TokenizerError(f"{tokenizer_json}: unreadable ({error}); download the file again") from error
    del content
    derived = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in texts:
        expected = original.encode(text, add_special_tokens=False).ids
        found = derived.encode(text)
        if found != expected:
            at = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), -1)
            raise TokenizerError(
                f"{tokenizer_json}: derived tokenizer differs at token {at} of {text[:40]!r}: "
                f"{found[at : at + 3]}, expected {expected[at : at + 3]}; add the original tokenizer.model"
            )
        found_text, expected_text = derived.decode(found), original.decode(expected, skip_special_tokens=False)
        if found_text != expected_text:
            raise TokenizerError(
                f"{tokenizer_json}: derived tokenizer spells {found_text[:40]!r}, expected {expected_text[:40]!r}; "
                "add the original tokenizer.model"
            )


# What conversion tries. Chosen for what could differ: whitespace runs, bytes without a piece, overlapping repeats,
# added tokens beside text, several scripts.
SAMPLES = (
    "The quick brown fox jumps over the lazy dog. 1234567890 times, isn't it?",
    "def f(x):\n    return {\n\t'a': [x ** 2 for _ in range(10)],\n\t}\n\n\n",
    *(" " * n + "x" for n in range(36)),
    *("a" + "\n" * n + "\t" * n + " b " for n in range(36)),
    *(unit * 25 for unit in ("ha", "aba", "na ", "--", "=", ".", "0", "the", SPACE, "é", "\r\n", "\u200b")),
    "naïve café, Straße, Ångström, ﬁ ½ ² № ™ \u00a0 \u3000 \ufeff \u202e end",
    "Съешь же ещё этих мягких французских булок. Ζαφείρι δέξου πάγκαλο.",
    "いろはにほへと 色は匂へど。中文分词测试,한국어 문장입니다. ข้อความภาษาไทย",
    "مرحبا بالعالم שלום עולם नमस्ते दुनिया ሰላም",
    "👍🏽 👨‍👩‍👧‍👦 🇺🇳 \U0001d518\U0001d52b\U0001d526 \U0010fffd \x00\x01\x7f \u0378",
    "<start_of_turn>user\nHi!<end_of_turn>\n<start_of_turn>model\n",
    "<start_of_turn<end_of_turn>><b>x</b><unused5> [multimodal]<mask><start_of_image>",
)


# ---------------------------------------------------------------- tokenizer.json


@dataclass(frozen=True)
class _Source:
    """A tokenizer.json. added: content -> id, of tokens cut out before BPE; settings: all but the two big lists."""

    vocabulary: dict[str, int]
    merges: list[Any]  # as stored, see _pair; half a million at Gemma's size
    added: dict[str, int]
    settings: dict[str, Any]


def _content(path: Path) -> bytes:
    content = read_plain(path)
    if content.startswith(b"version https://git-lfs"):
        raise TokenizerError(f"{path}: a Git LFS pointer, expected the file it points to; run `git lfs pull`")
    return content


def _read_json(path: Path) -> _Source:
    try:
        content = json.loads(_content(path))
        vocabulary, merges = content["model"].pop("vocab"), content["model"].pop("merges")
        added = {token["content"]: token["id"] for token in content["added_tokens"]}
        if not (isinstance(vocabulary, dict) and isinstance(merges, list)):
            raise TypeError("vocab and merges are no object and no list")
        if not all(type(number) is int for number in (*vocabulary.values(), *added.values())):
            raise TypeError("an id is no integer")
        if not all(isinstance(text, str) for text in added):
            raise TypeError("an added token is no text")
        return _Source(vocabulary, merges, added, content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TokenizerError(f"{path}: unreadable ({error!r}); download the file again") from error


def _check_settings(source: _Source, path: Path) -> None:
    """Raises TokenizerError unless the algorithm around the vocabulary is Gemma's."""

    def refuse(what: str, found: object, expected: object) -> TokenizerError:
        return TokenizerError(
            f"{path}: not a Gemma tokenizer, {what} is {str(found)[:80]}, expected {expected}; "
            "add the checkpoint's tokenizer.model"
        )

    model, vocabulary = source.settings["model"], source.vocabulary
    settings: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "model.type": (model.get("type"), ("BPE",)),
        "model.byte_fallback": (model.get("byte_fallback"), (True,)),
        "model.unk_token": (model.get("unk_token"), ("<unk>",)),
        "model.ignore_merges": (model.get("ignore_merges", False), (False,)),
        "model.dropout": (model.get("dropout"), (None, 0.0)),
        "model.continuing_subword_prefix": (model.get("continuing_subword_prefix"), (None, "")),
        "model.end_of_word_suffix": (model.get("end_of_word_suffix"), (None, "")),
        "normalizer": (source.settings.get("normalizer"), (_SPACE_NORMALIZER,)),
        "pre_tokenizer": (source.settings.get("pre_tokenizer"), (None, _SPACE_SPLIT)),
    }
    for what, (found, allowed) in settings.items():
        if found not in allowed:
            raise refuse(what, found, allowed[-1])
    by_id = {number: text for text, number in vocabulary.items()}
    for text, number in (CONTROL | UNKNOWN).items():
        is_renamed = number not in UNKNOWN.values() and text not in vocabulary and by_id.get(number) in source.added
        if vocabulary.get(text) != number and not is_renamed:
            raise refuse(f"the id of {text}", vocabulary.get(text), number)
    if missing := _BYTES - vocabulary.keys():
        raise refuse("the number of byte pieces", 256 - len(missing), 256)
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise refuse("the list of ids", "with gaps", f"0 to {len(vocabulary) - 1}")


def _pair(merge: Any) -> tuple[str, str]:
    """A merge is ["a", "b"]; before tokenizers 0.20 it was "a b"."""
    pair = merge.split(" ") if isinstance(merge, str) else merge
    if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], str):
        return pair[0], pair[1]
    raise TokenizerError(f"tokenizer.json: merge {merge!r} is not a pair of strings; download the file again")


def _scores(source: _Source, path: Path) -> dict[str, int]:
    """Piece -> score, for every piece that merging makes; see the module's first lines for what is checked."""
    first_rank: dict[str, int] = {}
    pairs: dict[str, int] = {}
    previous = ""
    for rank, (left, right) in enumerate(map(_pair, source.merges)):
        piece = left + right
        if piece != previous and piece in first_rank and piece not in source.added:
            raise TokenizerError(
                f"{path}: the merges that make {piece!r} are not consecutive (ranks {first_rank[piece]} and {rank}), "
                "so no SentencePiece scores reproduce them; add the checkpoint's tokenizer.model"
            )
        first_rank.setdefault(piece, rank)
        pairs[piece] = pairs.get(piece, 0) + 1
        previous = piece
    for piece in source.vocabulary:
        splits = sum(piece[:i] in source.vocabulary and piece[i:] in source.vocabulary for i in range(1, len(piece)))
        if splits != pairs.get(piece, 0) and piece not in source.added and piece not in _BYTES:
            raise TokenizerError(
                f"{path}: {pairs.get(piece, 0)} merges make {piece!r}, SentencePiece would try {splits}; "
                "add the checkpoint's tokenizer.model"
            )
    # What spells an added token is cut out of a text before anything is merged.
    made = (piece for piece in first_rank if piece not in source.added)
    return {piece: -rank for rank, piece in enumerate(made)}


def _derive(source: _Source, path: Path) -> proto.ModelProto:
    _check_settings(source, path)
    scores = _scores(source, path)
    model = proto.ModelProto()
    for text in sorted(source.vocabulary, key=source.vocabulary.__getitem__):
        if text in CONTROL:
            kind = _Piece.CONTROL
        elif text in UNKNOWN:
            kind = _Piece.UNKNOWN
        elif text in _BYTES:
            kind = _Piece.BYTE
        elif text in source.added:  # <eos> too, where a fine-tune gave it another name
            kind = _Piece.USER_DEFINED
        else:
            kind = _Piece.NORMAL
        # A single character is never the result of a merge; its score is not looked at.
        score = scores.get(text, -len(scores)) if kind == _Piece.NORMAL else 0
        model.pieces.add(piece=text, score=score, type=kind)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type = proto.TrainerSpec.BPE
    trainer.byte_fallback = True
    trainer.pad_id, trainer.eos_id, trainer.bos_id, trainer.unk_id = 0, 1, 2, 3
    trainer.pad_piece, trainer.eos_piece, trainer.bos_piece, trainer.unk_piece = (p.piece for p in model.pieces[:4])
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = False
    normalizer.remove_extra_whitespaces = False
    normalizer.escape_whitespaces = True
    return model


def _place_added(model: proto.ModelProto, added: Mapping[int, str]) -> None:
    """Gives the added tokens their pieces: in place of another, or behind the vocabulary up to the last one."""
    for number in range(len(model.pieces), max(added, default=-1) + 1):
        model.pieces.add(piece=f"<filler{number}>", score=0, type=_Piece.UNUSED)
    for number, text in added.items():
        piece = model.pieces[number]
        spelled = text.replace(" ", SPACE)  # as SentencePiece has a text when it looks for pieces
        if piece.piece != spelled or piece.type in (_Piece.NORMAL, _Piece.UNUSED):
            piece.piece, piece.type, piece.score = spelled, _Piece.USER_DEFINED, 0


# ---------------------------------------------------------------- tokenizer.model


def _read_model(path: Path) -> proto.ModelProto:
    model = proto.ModelProto()
    try:
        model.ParseFromString(_content(path))
        processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    except (OSError, DecodeError, RuntimeError) as error:
        raise TokenizerError(f"{path}: not a SentencePiece model; download the file again") from error
    if not model.pieces or min(processor.pad_id(), processor.eos_id(), processor.bos_id()) < 0:
        raise TokenizerError(
            f"{path}: not a Gemma tokenizer, <pad>, <eos> or <bos> is missing; use the one of the checkpoint"
        )
    return model


def _check_agreement(model: proto.ModelProto, source: _Source, path: Path) -> None:
    """The two files must list the same ids: a fine-tuned checkpoint may have replaced one of them only."""
    by_id = {number: text for text, number in (source.vocabulary | source.added).items()}
    renamed = set(source.added.values())
    for number, piece in enumerate(model.pieces):
        if by_id.get(number) != piece.piece and number not in renamed:
            raise TokenizerError(
                f"{path}: token {number} is {piece.piece!r}, in tokenizer.json {by_id.get(number)!r}; "
                "remove the file that does not belong to the checkpoint"
            )
