"""Text to token ids and back, with the SentencePiece model inside the bundle; and back again one token at a time."""

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import compress

import sentencepiece

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.formats.model import Model

_SPACE = "\u2581"  # how SentencePiece writes a space in its pieces
_UNKNOWN = " \u2047 "  # what it decodes the unknown piece to
_REPLACEMENT = "\ufffd"
_SURROGATE = re.compile("[\ud800-\udfff]")


class TokenizerError(GemmaEdgeError, RuntimeError):
    """A tokenizer that does not load, a token id that is not in its vocabulary, or a text that is not Unicode."""


class Tokenizer:
    """A SentencePiece tokenizer. Immutable, and safe to share between threads."""

    def __init__(self, model: bytes, origin: str = "the tokenizer") -> None:
        """model: a serialized SentencePiece ModelProto. origin: what to call it in an error."""
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise TokenizerError(f"{origin}: its SentencePiece model does not load; convert the model again") from error

    @classmethod
    def of_bundle(cls, bundle: Model) -> "Tokenizer":
        """The bundle's. Raises BundleError, OnnxDirectoryError: it has none. TokenizerError: it does not load."""
        return cls(bundle.sentencepiece_model(), str(bundle.path))

    @property
    def size(self) -> int:
        """How many pieces it has. The logits may be longer: Gemma 3n pads its vocabulary."""
        return int(self._processor.get_piece_size())

    def encode(self, text: str) -> list[int]:
        """Token ids, without a start token. Special tokens written out in the text become their ids.

        Raises TokenizerError: the text is not Unicode, as Python reads bytes that are not UTF-8 (surrogates).
        """
        lone = _SURROGATE.search(text)
        if lone is not None:
            raise TokenizerError(
                f"the text has {lone[0]!r} at {lone.start()}, which is no character; read its source as UTF-8"
            )
        return list(self._processor.encode(text))

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a sequence. Control tokens such as <bos> have none; broken bytes become U+FFFD."""
        self._check(token_ids)
        return str(self._processor.decode(list(token_ids)))

    def piece(self, token_id: int) -> str:
        """The piece as it is stored: "\u2581the", "<0xE2>", "<end_of_turn>"."""
        self._check([token_id])
        return str(self._processor.id_to_piece(token_id))

    def is_control(self, token_id: int) -> bool:
        """Whether it is a control token: never the result of encoding text, and without text of its own."""
        self._check([token_id])
        return bool(self._processor.is_control(token_id))

    def piece_bytes(self, token_id: int) -> bytes:
        """The bytes a token adds to a text; b"" for control tokens."""
        self._check([token_id])
        return self._bytes([token_id])[0]

    def all_piece_bytes(self) -> list[bytes]:
        """`piece_bytes` of every token."""
        return self._bytes(list(range(self.size)))

    def _bytes(self, token_ids: list[int]) -> list[bytes]:
        processor = self._processor  # asked for many at a time: 262,144 single calls would take seconds
        pieces = processor.id_to_piece(token_ids)
        kinds = zip(
            processor.is_control(token_ids), processor.is_byte(token_ids), processor.is_unknown(token_ids), strict=True
        )
        return [_piece_bytes(piece, *kind) for piece, kind in zip(pieces, kinds, strict=True)]

    @cached_property
    def control_tokens(self) -> frozenset[int]:
        """The tokens without text: padding, start, end and the like."""
        token_ids = list(range(self.size))
        return frozenset(compress(token_ids, self._processor.is_control(token_ids)))

    @cached_property
    def whole_pieces(self) -> tuple[str, ...]:
        """The pieces that are found in a text as they are, or were made to stand outside of it: no parts of words."""
        from sentencepiece import sentencepiece_model_pb2  # the processor does not tell which ones they are

        model = sentencepiece_model_pb2.ModelProto.FromString(self._processor.serialized_model_proto())
        kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
        return tuple(piece.piece for piece in model.pieces if piece.type in (kinds.USER_DEFINED, kinds.CONTROL))

    def is_byte(self, token_id: int) -> bool:
        """Whether it stands for one byte of a character that has no piece of its own."""
        self._check([token_id])
        return bool(self._processor.is_byte(token_id))

    @cached_property
    def drops_first_space(self) -> bool:
        """Whether decoding removes a space at the start of a text (Gemma's tokenizers keep it)."""
        return self.decode(self.encode(" a")) != " a"

    def _check(self, token_ids: Sequence[int]) -> None:
        wrong = next((token_id for token_id in token_ids if not 0 <= token_id < self.size), None)
        if wrong is not None:
            raise TokenizerError(f"token id {wrong} has no piece, expected 0 to {self.size - 1}; use this bundle's ids")


def _piece_bytes(piece: str, is_control: bool, is_byte: bool, is_unknown: bool) -> bytes:
    if is_control:
        return b""
    if is_byte:
        return bytes([int(piece[3:5], 16)])  # "<0xE2>"
    return (_UNKNOWN if is_unknown else piece.replace(_SPACE, " ")).encode()


class Detokenizer:
    """Turns tokens into text as they arrive.

    The texts it returns add up to `Tokenizer.decode` of all tokens, and none ends within a character: bytes of an
    unfinished character are held back until it is complete or cannot be completed any more.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._held = b""
        self._at_start = True

    def push(self, token_id: int) -> str:
        """The text that is certain after one more token; "" while a character is unfinished."""
        piece = self._tokenizer.piece_bytes(token_id)
        if self._tokenizer.is_byte(token_id):
            self._held += piece
            return self._started("".join(self._complete()))
        return self._started(self.flush() + piece.decode())

    def flush(self) -> str:
        """What was held back, at the end of the text: U+FFFD for each byte, as SentencePiece writes them."""
        held, self._held = self._held, b""
        return _REPLACEMENT * len(held)

    def _started(self, text: str) -> str:
        if not text or not self._at_start:
            return text
        self._at_start = False
        return text.removeprefix(" ") if self._tokenizer.drops_first_space else text

    def _complete(self) -> Iterator[str]:
        """Takes characters off the held bytes, and bytes that cannot begin or continue one."""
        while self._held:
            length = _utf8_length(self._held[0])
            head = self._held[:length]
            if length == 0 or any(byte & 0xC0 != 0x80 for byte in head[1:]):
                self._held = self._held[1:]
                yield _REPLACEMENT
            elif len(head) < length:
                return
            else:
                try:
                    character = head.decode()
                except UnicodeDecodeError:  # overlong, a surrogate or beyond U+10FFFF
                    self._held = self._held[1:]
                    yield _REPLACEMENT
                else:
                    self._held = self._held[length:]
                    yield character


def _utf8_length(first: int) -> int:
    """Bytes of the character that starts with this byte; 0 if none does."""
    if first < 0x80:
        return 1
    if 0xC2 <= first < 0xE0:
        return 2
    if 0xE0 <= first < 0xF0:
        return 3
    return 4 if 0xF0 <= first < 0xF5 else 0
