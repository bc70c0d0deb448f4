"""The door of the room: who asks, what goes in, how much, and what comes out.

Works by itself, and as the `Guard` of the server's hooks. Everything that is not let through is a `RefusedError`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gemma_edge.runtime.chat.message_json import Json
from gemma_edge.runtime.serve.errors import Code, RefusedError
from gemma_edge.runtime.serve.guard.classify import Classifier, load_classifier
from gemma_edge.runtime.serve.guard.content import Content
from gemma_edge.runtime.serve.guard.decisions import Hasher, Sink, log
from gemma_edge.runtime.serve.guard.keys import Key, KeyFile, sent_key
from gemma_edge.runtime.serve.guard.limits import Limits, OverLimit, SlidingWindow, Ticket, Usage
from gemma_edge.runtime.serve.guard.policy import Direction, Policy
from gemma_edge.runtime.serve.guard.reply import ReplyFilter
from gemma_edge.runtime.serve.hooks import Caller

UNLIMITED = Limits(requests=None)


class Guard:
    """For one thread at a time."""

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        keys: KeyFile | None = None,
        limits: Limits | None = None,
        classifier: Classifier | None = None,
        sink: Sink = log,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """limits: of each caller; None: the policy's, else the documents' where there are keys, else none.

        classifier: in place of the one that the policy names. sink: takes every decision. clock: seconds since 1970.
        Raises PolicyError: the policy's classifier is not there.
        """
        policy = policy or Policy()
        if classifier is None and policy.classifier is not None:
            classifier = load_classifier(policy.classifier)
        self.policy = policy
        self.needs_key = keys is not None
        self.filters_replies = bool(policy.rules.get(Direction.OUTPUT)) or classifier is not None
        self._hash = Hasher()
        self._content = Content(policy, classifier, self._hash, sink)
        self._keys = keys
        self._limits = limits or policy.limits or (UNLIMITED if keys is None else Limits())
        self._own_limits: dict[str, Limits] = {}  # by the caller's id
        self._window = SlidingWindow(self._limits, clock)
        self._running: dict[str, tuple[Ticket, int]] = {}  # by request: what was set aside for it

    @classmethod
    def of_files(cls, api_key_file: Path | None, policy_file: Path | None) -> "Guard | None":
        """As the command line asks for it; None where it asks for nothing. Raises KeyFileError, PolicyError."""
        if api_key_file is None and policy_file is None:
            return None
        policy = None if policy_file is None else Policy.read(policy_file)
        return cls(policy, keys=None if api_key_file is None else KeyFile(api_key_file))

    def caller(self, user_id: str) -> Caller:
        """Who a program says is asking. Only a hash of the id is kept, which differs from process to process."""
        return Caller(self._hash(user_id))

    def authorise(self, headers: Mapping[str, str]) -> Caller:
        """headers: by lower-case name. Raises RefusedError (401): there are keys, and none of them was sent."""
        if self._keys is None:
            return Caller()
        sent = sent_key(headers)
        if sent is None:
            raise RefusedError(401, Code.INVALID_API_KEY, "no API key, expected the header Authorization: Bearer KEY")
        key = self._keys.find(sent)
        if key is None:
            raise RefusedError(
                401, Code.INVALID_API_KEY, "this API key is not known; ask for one where the server is run"
            )
        caller = Caller(key.pseudonym, key.name)
        self._own_limits[caller.id] = self._limits_of(key)
        return caller

    def _limits_of(self, key: Key) -> Limits:
        common = self._limits
        requests = common.requests if key.requests is None else key.requests
        return Limits(requests, common.tokens if key.tokens is None else key.tokens, common.window_s)

    def check_input(self, caller: Caller, request_id: str, messages: Sequence[Json]) -> Sequence[Json]:
        """The messages that go to the model, cleaned. In LiteRT-LM's form (`message_json.standard_message`).

        Raises RefusedError: VALIDATION_ERROR, or CONTENT_FILTERED.
        """
        return self._content.cleaned(caller, request_id, messages)

    def check_tools(self, caller: Caller, request_id: str, tools: Sequence[Json]) -> None:
        """What is said of functions reaches the model too. Raises RefusedError (CONTENT_FILTERED), also where a message
        would only be masked: a name that was changed could not be called."""
        self._content.check_tools(caller, request_id, tools)

    def admit(self, caller: Caller, request_id: str, tokens: int = 0) -> None:
        """Count a request. tokens: the prompt's and the most it may write.

        A long recording is written window by window: the same request again, which counts once.

        Raises RefusedError (RATE_LIMIT_EXCEEDED): 429 with retry_after_s, or 400 where it could never be admitted.
        """
        ticket = self._window.admit(caller.id, tokens, self._own_limits.get(caller.id), request_id)
        if isinstance(ticket, OverLimit):
            raise _over(ticket, self._limits.window_s)
        self._running[request_id] = ticket, tokens

    def settle(self, caller: Caller, request_id: str, tokens: int) -> None:  # noqa: ARG002 - the hook's signature
        """What an admitted request used after all. Once; of a request that was not admitted it does nothing."""
        if (found := self._running.pop(request_id, None)) is not None:
            ticket, set_aside = found
            ticket.tokens += tokens - set_aside

    def reply_filter(self, caller: Caller, request_id: str) -> ReplyFilter:
        """A fresh one for each reply."""
        return self._content.reply_filter(caller, request_id)

    def usage(self, caller: Caller) -> Usage:
        """Of the window that ends now."""
        return self._window.usage(caller.id, self._own_limits.get(caller.id))

    def usage_json(self, caller: Caller) -> dict[str, Any]:
        """The same, as /v1/usage shows it."""
        return {"object": "usage", "name": caller.name, **asdict(self.usage(caller))}


def _over(over: OverLimit, window_s: float) -> RefusedError:
    asked = f"{over.used} {over.what} of the last {window_s:g} s and {over.wanted} more, expected at most {over.limit}"
    if over.wait_s is None:
        return RefusedError(400, Code.RATE_LIMIT_EXCEEDED, f"{asked}; ask for fewer, this many are never let through")
    advice = f"try again in {over.wait_s:.1f} s"
    return RefusedError(429, Code.RATE_LIMIT_EXCEEDED, f"{asked}; {advice}", retry_after_s=over.wait_s)
