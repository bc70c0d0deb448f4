"""How much each user may ask: requests and tokens in a window that slides with time.

Exact, not by buckets: a request counts from the moment it was admitted until one window later, and `wait_s` of a
refusal is when the same request would be admitted if nothing else came. Tokens are set aside at the start (the prompt's
and the most that may be written) and corrected at the end, so that no number of requests at once exceeds the limit.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from gemma_edge.profiles.errors import GemmaEdgeError


class LimitError(GemmaEdgeError, ValueError):
    """A limit that cannot be kept."""


@dataclass(frozen=True)
class Limits:
    """Of one user, in `window_s` seconds. None: no limit. The defaults are the documents'."""

    requests: int | None = 100
    tokens: int | None = None
    window_s: float = 3600.0

    def __post_init__(self) -> None:
        for name in ("requests", "tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise LimitError(f"{name} is {value}, expected at least 1, or None for no limit")
        if not self.window_s > 0:
            raise LimitError(f"window_s is {self.window_s}, expected more than 0 seconds")


_EXACT = 4096  # tickets of a user; of more, those that come close together are counted as one, to bound memory


@dataclass(frozen=True)
class OverLimit:
    """A request that is not admitted. wait_s: when it would be; None: never, it is larger than the limit."""

    what: str  # "requests" or "tokens"
    limit: int
    used: int
    wanted: int
    wait_s: float | None


@dataclass(frozen=True)
class Usage:
    """A user's statistics, in the documents' terms and beyond.

    remaining_requests, remaining_tokens: None without a limit. reset_time: seconds since 1970 when the oldest request
    leaves the window, and now where there is none.
    """

    requests_last_hour: int
    remaining_requests: int | None
    reset_time: float
    tokens_last_hour: int
    remaining_tokens: int | None
    window_s: float


@dataclass
class Ticket:
    """An admitted request, or many that came close together. at: of the first, seconds since 1970."""

    at: float
    tokens: int
    requests: int = 1
    request: str | None = None  # the name of the first


def _requests(ticket: Ticket) -> int:
    return ticket.requests


def _tokens(ticket: Ticket) -> int:
    return ticket.tokens


class SlidingWindow:
    """Every user's requests of the last window. For one thread at a time. A user who asks nothing takes no memory."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.time) -> None:
        """clock: seconds since 1970."""
        self._limits = limits
        self._clock = clock
        self._users: OrderedDict[str, deque[Ticket]] = OrderedDict()  # by the time of the last request

    def admit(
        self, user: str, tokens: int = 0, limits: Limits | None = None, request: str | None = None
    ) -> Ticket | OverLimit:
        """Count a request, or say why not. limits: this user's own; they have the window of all.

        request: its name. One that goes on, and so is admitted again, counts more tokens and no further request.
        """
        limits = limits or self._limits
        now = self._clock()
        tickets = self._current(user, now)
        named = reversed(tickets) if request is not None else ()
        begun = next((ticket for ticket in named if ticket.request == request), None)
        for what, limit, wanted, count in (
            ("requests", limits.requests, int(begun is None), _requests),
            ("tokens", limits.tokens, tokens, _tokens),
        ):
            used = 0 if limit is None else sum(map(count, tickets))
            if limit is not None and used + wanted > limit:
                return OverLimit(what, limit, used, wanted, self._wait_s(tickets, count, used + wanted - limit, now))
        if begun is not None:
            begun.tokens += tokens
            return begun
        if len(tickets) >= _EXACT and now - tickets[-1].at < self._limits.window_s / _EXACT:
            tickets[-1].requests += 1
            tickets[-1].tokens += tokens
        else:
            tickets.append(Ticket(now, tokens, request=request))
        self._users[user] = tickets
        self._users.move_to_end(user)
        self._forget(now)
        return tickets[-1]

    def usage(self, user: str, limits: Limits | None = None) -> Usage:
        """Of the window that ends now."""
        limits = limits or self._limits
        now = self._clock()
        tickets = self._current(user, now)
        requests, tokens = sum(map(_requests, tickets)), sum(map(_tokens, tickets))
        return Usage(
            requests_last_hour=requests,
            remaining_requests=None if limits.requests is None else max(0, limits.requests - requests),
            reset_time=tickets[0].at + self._limits.window_s if tickets else now,
            tokens_last_hour=tokens,
            remaining_tokens=None if limits.tokens is None else max(0, limits.tokens - tokens),
            window_s=self._limits.window_s,
        )

    def _current(self, user: str, now: float) -> deque[Ticket]:
        tickets = self._users.get(user, deque())
        while tickets and tickets[0].at + self._limits.window_s <= now:
            tickets.popleft()
        return tickets

    def _wait_s(self, tickets: deque[Ticket], count: Callable[[Ticket], int], excess: int, now: float) -> float | None:
        """Until tickets that count so much have left the window; None: there are not so many."""
        for ticket in tickets:
            excess -= count(ticket)
            if excess <= 0:
                return ticket.at + self._limits.window_s - now
        return None

    def _forget(self, now: float) -> None:
        """Users whose last request has left the window."""
        while self._users:
            user, tickets = next(iter(self._users.items()))
            if tickets and tickets[-1].at + self._limits.window_s > now:
                return
            del self._users[user]
