"""The token ids that transformers makes of a text: what a bundle's own tokenizer is held against."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as proto

from gemma_edge.converter.verify.errors import VerifyError
from gemma_edge.converter.verify.prompts.checkpoint_files import read_object, special_tokens


class _Backend(Protocol):
    """A tokenizer without added tokens of other files."""

    @property
    def added(self) -> Mapping[str, int]: ...

    def encode(self, texts: Sequence[str]) -> list[list[int]]: ...

    def find(self, text: str) -> int | None: ...


@dataclass(frozen=True)
class CheckpointTokenizer:
    """tokenizer.json by the `tokenizers` library, or tokenizer.model where that is all there is.

    added: every added token by its text, of either file, of added_tokens.json and tokenizer_config.json, with ids below
    the rows of the embedding table.
    """

    added: Mapping[str, int]
    backend: _Backend
    beside: re.Pattern[str] | None  # added tokens that only other files list; cut out of a text first
    beside_ids: Mapping[str, int]
    bos_id: int | None
    eos_id: int | None

    @classmethod
    def open(cls, checkpoint: Path, vocab_size: int) -> "CheckpointTokenizer":
        """Raises VerifyError: no tokenizer, or one that cannot be read."""
        if (path := checkpoint / "tokenizer.json").exists():
            backend: _Backend = _Json(path)
        elif (path := checkpoint / "tokenizer.model").exists():
            backend = _Pieces(path)
        else:
            raise VerifyError(f"{checkpoint}: has neither tokenizer.json nor tokenizer.model; add one of them")
        beside = {
            token["content"]: token
            for token in _listed(checkpoint)
            if token["content"] not in backend.added and backend.find(token["content"]) in (None, token["id"])
        }
        ids = {text: int(beside[text]["id"]) for text in sorted(beside, key=len, reverse=True)}  # the longest first
        patterns = [_pattern(beside[text]) for text in ids]
        named = special_tokens(checkpoint)

        def named_id(key: str, usual: str) -> int | None:
            text = named.get(key, usual)
            return ids.get(text, backend.find(text))

        return cls(
            {text: number for text, number in {**backend.added, **ids}.items() if number < vocab_size},
            backend,
            re.compile("|".join(patterns)) if patterns else None,
            ids,
            named_id("bos_token", "<bos>"),
            named_id("eos_token", "<eos>"),
        )

    def find(self, text: str) -> int | None:
        """The id of a token by its text; None where there is none."""
        return self.beside_ids.get(text, self.backend.find(text))

    def encode(self, text: str) -> list[int]:
        """Without start and end tokens, which a template writes itself."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Many at once, which is much faster."""
        if self.beside is None:
            return self.backend.encode(texts)
        return [[number for part in self._parts(text) for number in part] for text in texts]

    def _parts(self, text: str) -> Iterator[list[int]]:
        assert self.beside is not None
        end = 0
        for found in self.beside.finditer(text):
            yield from self.backend.encode([text[end : found.start()]])
            yield [next(number for content, number in self.beside_ids.items() if content in found[0])]
            end = found.end()
        yield from self.backend.encode([text[end:]])


class _Json:
    """tokenizer.json."""

    def __init__(self, path: Path) -> None:
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers has no class of its own
            raise VerifyError(f"{path}: cannot be read as a tokenizer ({error}); download the file again") from error
        self._tokenizer.no_truncation()  # as training left it, which a prompt does not want
        self._tokenizer.no_padding()
        self.added = {token.content: number for number, token in self._tokenizer.get_added_tokens_decoder().items()}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [found.ids for found in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def find(self, text: str) -> int | None:
        number: int | None = self._tokenizer.token_to_id(text)
        return number


class _Pieces:
    """tokenizer.model. transformers cuts its control tokens out of a text, SentencePiece by itself does not."""

    def __init__(self, path: Path) -> None:
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.Load(str(path))
        except (OSError, RuntimeError) as error:
            raise VerifyError(f"{path}: cannot be read as a SentencePiece model; download the file again") from error
        model = proto.ModelProto.FromString(self._processor.serialized_model_proto())
        kinds = {proto.ModelProto.SentencePiece.CONTROL, proto.ModelProto.SentencePiece.USER_DEFINED}
        self.added = {piece.piece: number for number, piece in enumerate(model.pieces) if piece.type in kinds}
        controls = [re.escape(text) for text, number in self.added.items() if self._processor.is_control(number)]
        self._control = re.compile(f"({'|'.join(controls)})") if controls else None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        if self._control is None:
            return [list(found) for found in self._processor.encode(list(texts))]
        return [[number for part in self._control.split(text) if part for number in self._part(part)] for text in texts]

    def _part(self, text: str) -> list[int]:
        return [self.added[text]] if text in self.added else list(self._processor.encode(text))

    def find(self, text: str) -> int | None:
        number = int(self._processor.piece_to_id(text))
        return None if number == self._processor.unk_id() and text != "<unk>" else number


def _listed(checkpoint: Path) -> Iterator[dict[str, Any]]:
    """{"content", "id", ...} of added_tokens.json and of tokenizer_config.json's added_tokens_decoder."""
    for text, number in read_object(checkpoint / "added_tokens.json").items():
        if type(number) is int:
            yield {"content": text, "id": number}
    decoder = read_object(checkpoint / "tokenizer_config.json").get("added_tokens_decoder")
    for number, token in (decoder if isinstance(decoder, dict) else {}).items():
        if isinstance(token, dict) and isinstance(token.get("content"), str) and number.isdecimal():
            yield token | {"id": int(number)}


def _pattern(token: Mapping[str, Any]) -> str:
    """How a token takes spaces beside it, as AddedToken's flags say."""
    before, after = (r"\s*" if token.get(flag) else "" for flag in ("lstrip", "rstrip"))
    return before + re.escape(str(token["content"])) + after
