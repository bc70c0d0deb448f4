"""litert_lm made to write a given text, to see what it parses of it: its parser has no name in Python.

A tiny model writes whatever a regular expression leaves it. litert_lm matches pieces as SentencePiece stores them, so
every character of the texts must be a piece: those that the tiny vocabulary lacks replace rare pieces.
"""

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import litert_lm
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from gemma_edge.converter.convert import convert

FIXTURE = Path(__file__).resolve().parents[1] / "tests" / "fixtures" / "tiny-gemma3"
CONTEXT_TOKENS = 2048
_NORMAL = sentencepiece_model_pb2.ModelProto.SentencePiece.NORMAL
_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$#&~\-]")  # of Rust's regular expressions


class TooLongError(ValueError):
    """A text of more tokens than the model's context."""


class Described(litert_lm.Tool):  # type: ignore[misc]
    """A tool that is its description."""

    def __init__(self, name: str) -> None:
        self._name = name

    def get_tool_description(self) -> dict[str, Any]:
        parameters = {"type": "object", "properties": {}}
        return {"type": "function", "function": {"name": self._name, "description": "", "parameters": parameters}}

    def execute(self, param: Mapping[str, Any]) -> None:
        """Never called: calls are not answered here."""


class Writer:
    """One loaded model; `written` says what litert_lm makes of a reply. Close it, or use it in a `with`."""

    def __init__(self, directory: Path, characters: Iterable[str], fixture: Path = FIXTURE) -> None:
        """directory: an empty one, for the model. characters: all that will be written. fixture: the model."""
        litert_lm.set_min_log_severity(litert_lm.LogSeverity.FATAL)
        checkpoint = checkpoint_with(directory / "checkpoint", characters, fixture)
        self.path = path = directory / "model.litertlm"
        convert("custom-int8", checkpoint, path, context=CONTEXT_TOKENS, measure=False)
        (directory / "cache").mkdir()
        self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(checkpoint / "tokenizer.model"))
        self._engine = litert_lm.Engine(
            str(path), litert_lm.Backend.CPU(thread_count=1), cache_dir=str(directory / "cache")
        )

    def written(self, text: str) -> dict[str, Any] | None:
        """The message that litert_lm makes of a reply; None where it fails. Raises TooLongError."""
        if len(self._pieces.encode(text)) > CONTEXT_TOKENS - 100:
            raise TooLongError(text)
        # With enable=True it also loads a constraint library that takes only Gemma's own vocabulary.
        provider = litert_lm.LiteRtLmConstraintProviderType.LL_GUIDANCE
        config = litert_lm.ConstrainedDecodingConfig(enable=False, provider=provider)
        with self._engine.create_conversation(
            tools=[Described("f")], automatic_tool_calling=False, constrained_decoding_config=config
        ) as conversation:
            conversation.constrained_decoding_config = litert_lm.ConstrainedDecodingConfig(provider=provider)
            pattern = "".join(_SPECIAL.sub(r"\\\g<0>", piece) for piece in self._pieces.encode(text, out_type=str))
            try:
                return dict(conversation.send_message("x", response_format=litert_lm.ResponseFormat.regex(pattern)))
            except RuntimeError:
                return None

    def close(self) -> None:
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def checkpoint_with(directory: Path, characters: Iterable[str], fixture: Path = FIXTURE) -> Path:
    """The fixture with these characters among its pieces, in a new directory."""
    shutil.copytree(fixture, directory)
    path = directory / "tokenizer.model"
    model = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    missing = set(characters) - {" ", "\u2581"} - {piece.piece for piece in model.pieces}
    rare = [piece for piece in reversed(model.pieces) if piece.type == _NORMAL and len(piece.piece) > 1]
    for piece, character in zip(rare, sorted(missing), strict=False):
        piece.piece = character
    path.write_bytes(model.SerializeToString())
    (directory / "tokenizer.json").unlink()
    return directory
