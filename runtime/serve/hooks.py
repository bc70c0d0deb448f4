"""Where a guard and a monitor take part. The server works without either.

The order of a request: `authorise` (its headers), then the body is read and checked, `check_input`, `admit` (its
tokens are known by then), the wait for a turn, `reply_filter` fed piece by piece, `settle`, and `Monitor.finished`.
All run in the event loop's thread and must not block it; none is called from two threads.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from gemma_edge.runtime.chat.message_json import Json
from gemma_edge.runtime.serve.events import Finished, Probe, State

if TYPE_CHECKING:  # a guard or a monitor without a server does not need it
    from starlette.routing import BaseRoute


@dataclass(frozen=True)
class Caller:
    """Who asks. id: hashed, good for logs and statistics; "anonymous" where nobody has to say. name: of the key."""

    id: str = "anonymous"
    name: str | None = None


class ReplyFilter(Protocol):
    """Sees one reply as it is written, and holds back what may become something that must not leave."""

    def feed(self, text: str) -> str:
        """The text that may leave now, of all that was fed.

        Raises RefusedError (RESPONSE_FILTERED): the reply ends here; a stream has `finish_reason` "content_filter"
        then, and any other reply is this refusal.
        """

    def finish(self) -> str:
        """The rest, at the end of the reply. Raises RefusedError as `feed` does."""


class Guard(Protocol):
    """Keys, limits and content policy.

    needs_key: whether a key is asked for. filters_replies: whether a reply may be changed on its way out; its log
    probabilities, which would show what it was, are refused then.
    """

    needs_key: bool
    filters_replies: bool

    def authorise(self, headers: Mapping[str, str]) -> Caller:
        """headers: by lower-case name. Raises RefusedError (401)."""

    def check_input(self, caller: Caller, request_id: str, messages: Sequence[Json]) -> Sequence[Json]:
        """The messages that go to the model, cleaned. Of a completion: one user's message with its prompt.

        messages: in LiteRT-LM's form (`message_json.standard_message`). Raises RefusedError (CONTENT_FILTERED,
        VALIDATION_ERROR).
        """

    def check_tools(self, caller: Caller, request_id: str, tools: Sequence[Json]) -> None:
        """Raises RefusedError (CONTENT_FILTERED)."""

    def admit(self, caller: Caller, request_id: str, tokens: int) -> None:
        """Count a request against the caller's limits. tokens: the prompt's and the most it may write, all choices.

        Raises RefusedError (429, RATE_LIMIT_EXCEEDED, with retry_after_s).
        """

    def settle(self, caller: Caller, request_id: str, tokens: int) -> None:
        """What an admitted request used after all; 0 where it never ran."""

    def reply_filter(self, caller: Caller, request_id: str) -> ReplyFilter:
        """A fresh one for each reply (each choice of a request has its own)."""


Probing: TypeAlias = Callable[[], State]


class Monitor(Protocol):
    """Figures of what the server did."""

    def finished(self, event: Finished) -> None:
        """Called once at the end of each request; must not raise."""

    def health(self, probe: Probe) -> Mapping[str, Any]:
        """The JSON of /health; its "status" is "healthy", "degraded" or "unhealthy" (the last is sent as 503)."""

    def routes(self, state: Probing) -> "Sequence[BaseRoute]":
        """More pages: /metrics, /v1/usage, /. All but `/` are asked for with a key where there are keys.

        Handlers find who asks as `request.state.caller`, a `Caller`.
        """
