"""What the guard decided, for the log: who and what as hashes that only this process could have made."""

import hashlib
import hmac
import json
import logging
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass

LOGGER = "gemma_edge.guard"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One of them. caller, text_hash: keyed hashes. text: what met the rule, only where the policy says log_text."""

    action: str  # refuse, mask, log, or strip: markup was taken out
    direction: str
    category: str
    caller: str
    request: str
    text_hash: str
    text: str | None = None


Sink = Callable[[Decision], None]


def log(decision: Decision) -> None:
    """A line of JSON to the logger `gemma_edge.guard`: refusals as warnings, all else as information."""
    level = logging.WARNING if decision.action == "refuse" else logging.INFO
    values = {name: value for name, value in asdict(decision).items() if value is not None}
    logging.getLogger(LOGGER).log(level, "%s", json.dumps(values))


class Hasher:
    """Names that stand for users and texts: the same for the same within a process, and of no use to anybody else.

    A plain hash of a name or of a short text is found by trying them all; this one has a secret in it.
    """

    def __init__(self, secret: bytes | None = None) -> None:
        """secret: to have the same names in several processes; otherwise a new one."""
        self._secret = secret or secrets.token_bytes(32)

    def __call__(self, text: str) -> str:
        """16 hexadecimal digits."""
        return hmac.new(self._secret, text.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()[:16]
