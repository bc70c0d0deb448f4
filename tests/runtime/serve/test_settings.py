"""Settings of a server: each bound is checked where it is set. And how refusals are written."""

import pytest

from gemma_edge.runtime.serve.errors import Code, RefusedError
from gemma_edge.runtime.serve.settings import ServeError, Settings


def test_bounds_are_checked() -> None:
    with pytest.raises(ServeError, match="model_id is empty, expected a name"):
        Settings(model_id="")
    with pytest.raises(ServeError, match='truncate is "newest", expected "oldest"'):
        Settings(model_id="m", truncate="newest")  # type: ignore[arg-type]
    with pytest.raises(ServeError, match="waiting is 0, expected at least 1"):
        Settings(model_id="m", waiting=0)
    with pytest.raises(ServeError, match="bodies_bytes is 9, expected at least body_bytes, 10; raise it"):
        Settings(model_id="m", body_bytes=10, bodies_bytes=9)
    with pytest.raises(ServeError, match="wait_s is 0, expected more than 0 seconds"):
        Settings(model_id="m", wait_s=0)


def test_a_refusal_is_openais_error() -> None:
    refusal = RefusedError(429, Code.RATE_LIMIT_EXCEEDED, "too many", param="model", retry_after_s=1.2)
    assert refusal.to_json() == {
        "error": {"message": "too many", "type": "rate_limit_error", "param": "model", "code": "RATE_LIMIT_EXCEEDED"}
    }
    assert refusal.headers == {"Retry-After": "2"}
    assert RefusedError(503, Code.QUEUE_TIMEOUT, "late", retry_after_s=0.1).headers == {"Retry-After": "1"}
    assert RefusedError(401, Code.INVALID_API_KEY, "no").headers == {"WWW-Authenticate": "Bearer"}
