"""What the server reports of itself: of each request when it ends, and of its state when it is asked."""

from dataclasses import dataclass
from enum import StrEnum

from gemma_edge.runtime.serve.errors import Code


class Kind(StrEnum):
    """What was asked for."""

    CHAT = "chat"
    COMPLETION = "completion"
    TRANSCRIPTION = "transcription"
    TRANSLATION = "translation"


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A request that has ended, answered or refused. Reported once for every request of a `Kind`.

    id: as the client saw it. started_at: seconds since 1970. caller: `Caller.id`.
    status: of HTTP; of a stream that broke off, what it would have been. finish_reason: as OpenAI has it, of the first
    choice; None where there is none. error_code: why it was refused or broke off; CANCELLED: the client left.
    cached_tokens: of the prompt's, what a slot still held.
    drafted_tokens: guesses that ran. accepted_tokens: those that stood and saved a call. forced_tokens: those that a
    response format left no choice about, and that saved a call. batched_tokens: those whose step ran in one call with
    other replies'.
    wait_s: until it had its turn. first_token_s: from its arrival, 0 where none was drawn. token_s: of every later
    token.
    hard_bytes: anonymous and shared memory of the process at its end.
    prompt_text, reply_text: the last user's text and the reply, to be scored; never to be logged or kept.
    """

    id: str
    kind: Kind
    model: str
    started_at: float
    caller: str
    status: int
    is_stream: bool = False
    finish_reason: str | None = None
    error_code: Code | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    forced_tokens: int = 0
    batched_tokens: int = 0
    wait_s: float = 0.0
    first_token_s: float = 0.0
    token_s: tuple[float, ...] = ()
    total_s: float = 0.0
    hard_bytes: int = 0
    prompt_text: str = ""
    reply_text: str = ""


@dataclass(frozen=True, kw_only=True)
class State:
    """The server now. hard_bytes: anonymous and shared memory; budget_bytes: of the profile, None without one."""

    model: str
    started_at: float
    active: int
    waiting: int
    most_active: int
    most_waiting: int
    context_tokens: int
    kv_bytes: int
    snapshot_bytes: int
    hard_bytes: int
    file_bytes: int
    budget_bytes: int | None
    is_stopping: bool = False


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One token run through the model for /health. error: why it could not be, None where it could."""

    state: State
    response_s: float
    error: str | None = None
