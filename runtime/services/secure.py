"""Replies to users who are told apart: limits, checked messages and a content policy, in the documents' terms.

The same guard stands in front of `gemma-edge serve`; here a program uses it without a network.
"""

import json
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import count
from typing import Any, Literal, NotRequired, TypedDict

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.chat.conversation import Conversation
from gemma_edge.runtime.chat.message_json import Json, MessageError, sendable_message
from gemma_edge.runtime.chat.messages import Message
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.serve.api.check import parsed
from gemma_edge.runtime.serve.errors import Code, RefusedError
from gemma_edge.runtime.serve.guard.guard import Guard
from gemma_edge.runtime.serve.guard.limits import Limits
from gemma_edge.runtime.serve.guard.policy import Policy
from gemma_edge.runtime.serve.guard.reply import ReplyFilter
from gemma_edge.runtime.serve.guard.sanitise import Sanitising
from gemma_edge.runtime.serve.hooks import Caller
from gemma_edge.runtime.services.chats import conversation_of, sending
from gemma_edge.runtime.services.errors import ServiceError
from gemma_edge.runtime.services.request import GenerationConfig

_log = logging.getLogger(__name__)

_MOST_LEVELS = 64  # as the server reads
MOST_TOKENS = 1024
"""Of a reply that may be asked for."""
DOCUMENTED = Policy(sanitising=Sanitising())
"""Messages as the documents check them, and no words that are filtered: those are yours to say."""


class SecureReply(TypedDict):
    """generation_time: seconds. tokens_used: drawn, a stop token included; not the limit, but what was needed."""

    success: Literal[True]
    response: str
    generation_time: float
    tokens_used: int


class Refused(TypedDict):
    """code: RATE_LIMIT_EXCEEDED, VALIDATION_ERROR, CONTENT_FILTERED, RESPONSE_FILTERED or GENERATION_ERROR.

    error: one line for people, without the text that was refused. retry_after: seconds, of a rate limit.
    """

    success: Literal[False]
    error: str
    code: str
    retry_after: NotRequired[float]


class UsageStatistics(TypedDict):
    """reset_time: seconds since 1970 when the oldest request leaves the window."""

    requests_last_hour: int
    remaining_requests: int
    reset_time: float


class SecureService:
    """Replies from one engine, for threads as they like. The engine is the caller's, who also closes it."""

    def __init__(self, engine: Engine, policy: Policy = DOCUMENTED, max_requests_per_hour: int = 100) -> None:
        """policy: what is checked and filtered; `Policy.read` takes a file. Of limits in it, the tokens' count here.

        Raises LimitError: max_requests_per_hour below 1. PolicyError: the policy's classifier is not there.
        """
        self._engine, self._limit = engine, max_requests_per_hour
        tokens = None if policy.limits is None else policy.limits.tokens
        self._guard = Guard(policy, limits=Limits(requests=max_requests_per_hour, tokens=tokens, window_s=3600.0))
        self._lock = threading.Lock()  # the guard is for one thread at a time
        self._ids = count(1)

    def secure_generate(self, messages: Sequence[Json], user_id: str, max_tokens: int = 512) -> SecureReply | Refused:
        """The reply to a list of messages, or why there is none; raises nothing that a request can cause.

        Every request counts for its user, refused ones too. What the policy filters in a reply never leaves. Control
        tokens that a message writes out stay text, and no file is opened for one.
        """
        started = time.perf_counter()
        try:
            caller = self._caller(user_id)
            response, tokens = self._reply(caller, str(next(self._ids)), messages, max_tokens)
        except RefusedError as error:
            _log.info("refused: %s", error.code.value)
            return _refused(error)
        seconds = time.perf_counter() - started
        _log.info("user %s: %d tokens in %.2f s", caller.id, tokens, seconds)
        return SecureReply(success=True, response=response, generation_time=seconds, tokens_used=tokens)

    def get_usage_statistics(self, user_id: str) -> UsageStatistics:
        """Of the last hour. Raises RefusedError (VALIDATION_ERROR): no user id."""
        caller = self._caller(user_id)
        with self._lock:
            usage = self._guard.usage(caller)
        return UsageStatistics(
            requests_last_hour=usage.requests_last_hour,
            remaining_requests=self._limit - usage.requests_last_hour,
            reset_time=usage.reset_time,
        )

    def _caller(self, user_id: str) -> Caller:
        if not isinstance(user_id, str) or not user_id:
            raise _invalid("user_id is empty or no text, expected who asks; name the user")
        return self._guard.caller(user_id)

    def _reply(self, caller: Caller, request_id: str, messages: Sequence[Json], max_tokens: int) -> tuple[str, int]:
        with self._lock:
            self._guard.admit(caller, request_id, max_tokens if _is_length(max_tokens) else 0)
        used = 0
        try:
            cleaned, config = self._checked(caller, request_id, messages, max_tokens)
            conversation, last = _conversation(self._engine, cleaned, config)
            reply = self._guard.reply_filter(caller, request_id)
            with conversation:
                try:
                    with closing(conversation.send_message_async(last, **sending(config))) as pieces:
                        text = "".join(self._filtered(reply, map(str, pieces)))
                finally:
                    used = conversation.usage.prompt + conversation.usage.generated
                return text, conversation.usage.generated
        except RefusedError:
            raise
        except GemmaEdgeError as error:
            raise RefusedError(500, Code.GENERATION_ERROR, str(error)) from error
        finally:
            with self._lock:
                self._guard.settle(caller, request_id, used)

    def _filtered(self, reply: ReplyFilter, pieces: Iterable[str]) -> Iterator[str]:
        for piece in pieces:
            with self._lock:  # a classifier is asked by one thread at a time, of replies too
                passed = reply.feed(piece)
            yield passed
        with self._lock:
            rest = reply.finish()
        yield rest

    def _checked(
        self, caller: Caller, request_id: str, messages: Sequence[Json], max_tokens: int
    ) -> tuple[Sequence[Json], GenerationConfig]:
        if not _is_length(max_tokens):
            raise _invalid(f"max_tokens is {max_tokens!r}, expected 1 to {MOST_TOKENS}; ask for another length")
        if not isinstance(messages, list | tuple):
            raise _invalid(f"messages is {type(messages).__name__}, expected a list; put the messages in one")
        for number, message in enumerate(messages, 1):
            if not isinstance(message, Mapping):
                raise _invalid(
                    f"message {number} is {type(message).__name__}, expected a mapping with role and content; send one"
                )
        try:
            standard = [sendable_message(message) for message in _plain(messages)]
        except MessageError as error:
            raise _invalid(str(error)) from error
        if any("path" in part for message in standard for part in _parts(message)):
            raise _invalid("a part of a message names a file of this machine, expected its bytes; send a data: URL")
        with self._lock:
            return self._guard.check_input(caller, request_id, standard), GenerationConfig(max_tokens=max_tokens)


def _conversation(
    engine: Engine, messages: Sequence[Json], config: GenerationConfig
) -> tuple[Conversation, Json | Message]:
    try:
        return conversation_of(engine, messages, config, sanitize_control_tokens=True)
    except (ServiceError, MessageError) as error:
        raise _invalid(str(error)) from error


def _plain(messages: Sequence[Json]) -> Sequence[Json]:
    """The same, made of nothing but what JSON has: bounded, and nobody else's to change. Raises RefusedError."""
    try:
        body = json.dumps({"messages": messages}, allow_nan=False, default=_mapping)
        plain: Sequence[Json] = parsed(body.encode(), _MOST_LEVELS)["messages"]
    except (TypeError, ValueError, RecursionError, RefusedError) as error:
        raise _invalid(f"the messages are no JSON ({error}); send texts, numbers, lists and mappings") from error
    return plain


def _mapping(value: object) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no JSON")


def _parts(message: Json) -> Sequence[Json]:
    content = message.get("content")
    return content if isinstance(content, list) else ()


def _is_length(max_tokens: object) -> bool:
    return isinstance(max_tokens, int) and 1 <= max_tokens <= MOST_TOKENS


def _invalid(message: str) -> RefusedError:
    return RefusedError(400, Code.VALIDATION_ERROR, message)


def _refused(error: RefusedError) -> Refused:
    refused = Refused(success=False, error=str(error), code=error.code.value)
    if error.retry_after_s is not None:
        refused["retry_after"] = error.retry_after_s
    return refused
