"""What a request is refused with: an HTTP status and OpenAI's error object."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from gemma_edge.profiles.errors import GemmaEdgeError


class Code(StrEnum):
    """`error.code`: what programs can branch on."""

    VALIDATION_ERROR = "VALIDATION_ERROR"
    CONTENT_FILTERED = "CONTENT_FILTERED"  # the prompt
    RESPONSE_FILTERED = "RESPONSE_FILTERED"  # the reply
    RATE_LIMIT_EXCEEDED = "RATE_LIMIT_EXCEEDED"  # of this key
    GENERATION_ERROR = "GENERATION_ERROR"  # the model stopped
    INVALID_API_KEY = "invalid_api_key"
    MODEL_NOT_FOUND = "model_not_found"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    UNSUPPORTED_PARAMETER = "unsupported_parameter"
    TOO_LARGE = "request_too_large"
    OVER_BUDGET = "over_memory_budget"
    QUEUE_FULL = "queue_full"
    QUEUE_TIMEOUT = "queue_timeout"
    SHUTTING_DOWN = "shutting_down"
    TIMEOUT = "request_timeout"
    CANCELLED = "client_left"  # never sent: nobody is there


_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class RefusedError(GemmaEdgeError):
    """A request that is not answered, and why.

    status: of HTTP. param: which field of the request is meant. retry_after_s: when to ask again (429, 503).
    """

    def __init__(
        self, status: int, code: Code, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    def to_json(self) -> dict[str, Any]:
        """{"error": {"message", "type", "param", "code"}}, as OpenAI writes it."""
        kind = "server_error" if self.status >= 500 else _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code.value}}

    @property
    def headers(self) -> Mapping[str, str]:
        """Retry-After in whole seconds, at least 1; of a 401 also how to authorise."""
        found = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        if self.retry_after_s is not None:
            found["Retry-After"] = str(max(1, -int(-self.retry_after_s // 1)))
        return found
