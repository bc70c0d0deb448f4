"""Messages as the documents' secure service takes them: a bounded number, of bounded length, without markup of scripts.

What is taken out is what a browser would run if a page showed the text as HTML. A page that shows text as text, as ours
does, needs none of it; a text that only speaks of such markup loses it too. So it is done only where it is asked for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from gemma_edge.profiles.errors import GemmaEdgeError

DOCUMENTED_ROLES = ("user", "assistant", "system")
_TAGS = "script|iframe|object|embed"
_MOST_PASSES = 8  # taking out one piece may join two others: <scr<script>ipt>


class SanitiseError(GemmaEdgeError, ValueError):
    """Messages that are not taken."""


@dataclass(frozen=True)
class Sanitising:
    """What messages may be. None: no limit. The defaults are the documents'.

    characters: of one message. messages: of one request, at least one is asked for. roles: who may speak.
    """

    strip_markup: bool = True
    characters: int | None = 8192
    messages: int | None = 50
    roles: tuple[str, ...] = DOCUMENTED_ROLES

    def check(self, messages: Sequence[Any]) -> None:
        """messages: each with a role and content, text or a list of parts. Raises SanitiseError."""
        if not messages or (self.messages is not None and len(messages) > self.messages):
            bound = "at least 1" if self.messages is None else f"1 to {self.messages}"
            raise SanitiseError(f"{len(messages)} messages, expected {bound}; leave the oldest out")
        for number, message in enumerate(messages, 1):
            role = message.get("role")
            if role not in self.roles:
                raise SanitiseError(f'message {number}: role "{role}", expected one of {", ".join(self.roles)}')
            length = sum(map(len, _texts(message.get("content"))))
            if self.characters is not None and length > self.characters:
                raise SanitiseError(
                    f"message {number}: {length} characters, expected at most {self.characters}; shorten it"
                )

    def clean(self, text: str) -> str:
        """Without markup, where it is to be stripped. Raises SanitiseError: it is nested too deeply."""
        if not self.strip_markup:
            return text
        for _ in range(_MOST_PASSES):
            shorter = _markup()(text)
            if shorter == text:
                return text
            text = shorter
        raise SanitiseError(f"script markup inside script markup, more than {_MOST_PASSES} deep; send plain text")


def _texts(content: object) -> list[str]:
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list) else []
    return [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]


@cache
def _markup() -> Callable[[str], str]:
    """Takes out whole elements, tags that stand alone, and addresses that run a script or hold a page."""
    try:
        import re2
    except ImportError:
        raise SanitiseError("stripping markup needs google-re2; run pip install 'gemma-edge[serve]'") from None
    elements = "|".join(rf"<\s*{tag}\b[^>]*>.*?<\s*/\s*{tag}\b[^>]*>" for tag in _TAGS.split("|"))
    found = re2.compile(rf"(?is){elements}|<\s*/?\s*(?:{_TAGS})\b[^>]*>?|javascript\s*:|data\s*:\s*text/html")
    return lambda text: str(found.sub("", text))
