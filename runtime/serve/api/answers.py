"""Replies as OpenAI writes them: whole, or as the chunks of a stream."""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gemma_edge.runtime.kv.generate import Drawn
from gemma_edge.runtime.serve.choices import Piece, ToolCall, Totals
from gemma_edge.runtime.text.tokenizer import Tokenizer

Json = dict[str, Any]


def new_id(prefix: str) -> str:
    """Such as chatcmpl-0123..."""
    return f"{prefix}-{secrets.token_hex(12)}"


def usage_json(totals: Totals) -> Json:
    """Tokens, those of all choices together."""
    return {
        "prompt_tokens": totals.prompt_tokens,
        "completion_tokens": totals.generated_tokens,
        "total_tokens": totals.prompt_tokens + totals.generated_tokens,
        "prompt_tokens_details": {"cached_tokens": totals.cached_tokens},
    }


class Answer(Protocol):
    """How one kind of request is answered."""

    id: str

    def whole(self, pieces: Sequence[Piece], totals: Totals) -> Json:
        """The reply, once it is there."""

    def chunks(self, piece: Piece) -> Sequence[Json]:
        """What a piece adds to a stream, in one chunk or several."""

    def usage(self, totals: Totals) -> Json:
        """The last chunk of a stream that tells its usage."""


@dataclass
class _Said:
    """What there is of one choice. indent: its calls so far."""

    text: str = ""
    calls: list[Json] = field(default_factory=list)
    tokens: list[Drawn] = field(default_factory=list)
    finish: str = "stop"


def _gathered(pieces: Sequence[Piece], choices: int) -> list[_Said]:
    said = [_Said() for _ in range(choices)]
    for piece in pieces:
        one = said[piece.choice]
        one.text += piece.text
        one.calls += [_call(call) for call in piece.calls]
        one.tokens += piece.tokens
        one.finish = piece.finish or one.finish
    return said


def _call(call: ToolCall) -> Json:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


class _Common:
    """What both kinds of reply have."""

    def __init__(self, prefix: str, model: str, tokenizer: Tokenizer, choices: int, *, has_scores: bool) -> None:
        self.id = new_id(prefix)
        self._model, self._tokenizer = model, tokenizer
        self._choices = choices
        self._has_scores = has_scores
        self._created = int(time.time())

    def _around(self, kind: str, choices: Sequence[Json]) -> Json:
        return {"id": self.id, "object": kind, "created": self._created, "model": self._model, "choices": list(choices)}

    def _token(self, token_id: int) -> tuple[str, list[int] | None]:
        """Text of a token, and its bytes, which may be part of a character; of a control token its name."""
        if token_id >= self._tokenizer.size:
            return "", None
        if self._tokenizer.is_control(token_id):
            return self._tokenizer.piece(token_id), None
        written = self._tokenizer.piece_bytes(token_id)
        return written.decode("utf-8", "replace"), list(written)


class ChatAnswer(_Common):
    """Of /v1/chat/completions."""

    def __init__(self, model: str, tokenizer: Tokenizer, choices: int, *, has_scores: bool) -> None:
        super().__init__("chatcmpl", model, tokenizer, choices, has_scores=has_scores)
        self._calls = [0] * choices  # that were sent of each
        self._begun = [False] * choices

    def whole(self, pieces: Sequence[Piece], totals: Totals) -> Json:
        choices = [
            {
                "index": index,
                "message": self._message(said),
                "logprobs": self._logprobs(said.tokens),
                "finish_reason": said.finish,
            }
            for index, said in enumerate(_gathered(pieces, self._choices))
        ]
        return {**self._around("chat.completion", choices), "usage": usage_json(totals)}

    @staticmethod
    def _message(said: _Said) -> Json:
        text = said.text.strip("\n") if said.calls else said.text
        message: Json = {"role": "assistant", "content": text or None if said.calls else text, "refusal": None}
        return {**message, "tool_calls": said.calls} if said.calls else message

    def chunks(self, piece: Piece) -> list[Json]:
        found: list[Json] = []
        index = piece.choice
        if not self._begun[index]:
            self._begun[index] = True
            found.append(self._chunk(index, {"role": "assistant", "content": ""}))
        if piece.text:
            found.append(self._chunk(index, {"content": piece.text}, self._logprobs(piece.tokens)))
        elif piece.tokens and not piece.calls:
            found.append(self._chunk(index, {"content": ""}, self._logprobs(piece.tokens)))
        for call in piece.calls:
            numbered = {"index": self._calls[index], **_call(call)}
            self._calls[index] += 1
            found.append(self._chunk(index, {"tool_calls": [numbered]}))
        if piece.finish is not None:
            found.append(self._chunk(index, {}, finish=piece.finish))
        return found

    def usage(self, totals: Totals) -> Json:
        return {**self._around("chat.completion.chunk", []), "usage": usage_json(totals)}

    def _chunk(self, index: int, delta: Json, logprobs: Json | None = None, finish: str | None = None) -> Json:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._around("chat.completion.chunk", [choice])

    def _logprobs(self, tokens: Sequence[Drawn]) -> Json | None:
        if not self._has_scores:
            return None
        return {"content": [self._scored(drawn) for drawn in tokens]}

    def _scored(self, drawn: Drawn) -> Json:
        assert drawn.scores is not None
        best = [self._score(token_id, score) for token_id, score in drawn.scores.best]
        return {**self._score(drawn.token_id, drawn.scores.chosen), "top_logprobs": best}

    def _score(self, token_id: int, score: float) -> Json:
        text, written = self._token(token_id)
        return {"token": text, "logprob": score, "bytes": written}


class CompletionAnswer(_Common):
    """Of /v1/completions."""

    def __init__(self, model: str, tokenizer: Tokenizer, choices: int, *, has_scores: bool) -> None:
        super().__init__("cmpl", model, tokenizer, choices, has_scores=has_scores)
        self._sent = [0] * choices  # characters of each

    def whole(self, pieces: Sequence[Piece], totals: Totals) -> Json:
        choices = [
            self._choice(index, said.text, self._logprobs(said.tokens, 0), said.finish)
            for index, said in enumerate(_gathered(pieces, self._choices))
        ]
        return {**self._around("text_completion", choices), "usage": usage_json(totals)}

    def chunks(self, piece: Piece) -> list[Json]:
        logprobs = self._logprobs(piece.tokens, self._sent[piece.choice])
        self._sent[piece.choice] += len(piece.text)
        return [self._around("text_completion", [self._choice(piece.choice, piece.text, logprobs, piece.finish)])]

    def usage(self, totals: Totals) -> Json:
        return {**self._around("text_completion", []), "usage": usage_json(totals)}

    @staticmethod
    def _choice(index: int, text: str, logprobs: Json | None, finish: str | None) -> Json:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, tokens: Sequence[Drawn], start: int) -> Json | None:
        """start: where the first token's text begins."""
        if not self._has_scores:
            return None
        texts = [self._token(drawn.token_id)[0] for drawn in tokens]
        offsets = [start + sum(map(len, texts[:index])) for index in range(len(texts))]
        scores = [drawn.scores for drawn in tokens if drawn.scores is not None]
        best: list[Mapping[str, float]] = [
            {self._token(token_id)[0]: score for token_id, score in score.best} for score in scores
        ]
        return {
            "tokens": texts,
            "token_logprobs": [score.chosen for score in scores],
            "top_logprobs": best,
            "text_offset": offsets,
        }
