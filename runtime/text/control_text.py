"""Control tokens that stay text: what a tool fetched, or a user typed, opens and closes no turn.

A tokenizer finds a control token wherever its name is written. In text of others a mark is therefore put into each
name, after its first character, before the chat template sees it. The prompt is cut at the marks and each piece
tokenized by itself: the same characters, without the token. (transformers' `sanitize_control_tokens` does the same.)
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

_MARK = "\ufdd0"  # no character: Unicode keeps it for a program's inner use
_REPLACED = "\ufffd"  # what stands for one that a text holds against the rules
_BRACKETS = re.compile(r"<[^<>]*>|\[[^\[\]]*\]")
_BLANKS = "\u2581 \t\r\n"
# Gemma has tokens for these. They are no commands, and pages that tools fetch are full of them.
_HTML = re.compile(
    r"</?(?:a|b|blockquote|body|br|caption|code|dd|del|div|dl|dt|em|h[1-6]|hr|html|i|img|ins|li|ol|p|pre|small|span|"
    r"strike|strong|sub|sup|table|tbody|td|tfoot|th|thead|title|tr|u|ul)>"
)


# LiteRT-LM's: where an image or a recording stands, the first two in Gemma 3's template, the others in Gemma 3n's.
MEDIA_PLACES = ("<start_of_image>", "<start_of_audio>", "<image_soft_token>", "<audio_soft_token>")


class ControlText:
    """Marks the names of control tokens in texts. Immutable."""

    def __init__(self, pieces: Iterable[str]) -> None:
        """pieces: every piece that the tokenizer finds as a whole; blanks and HTML tags are passed over."""
        names = {piece for piece in pieces if len(piece) > 1 and piece.strip(_BLANKS) and not _HTML.fullmatch(piece)}
        self._names = frozenset(names)
        self._beginnings = frozenset(name[:length] for name in names for length in range(1, len(name)))
        self._longest = max(map(len, names), default=0)
        # Gemma has thousands of names in brackets: those are looked up, not tried one after the other.
        others = sorted((name for name in names if not _BRACKETS.fullmatch(name)), key=lambda name: (-len(name), name))
        self._pattern = re.compile("|".join([*map(re.escape, others), _BRACKETS.pattern]))

    def marked(self, value: Any) -> Any:
        """A JSON value with marks in all its texts, keys included."""
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, Mapping):
            return {self.marked(key): self.marked(item) for key, item in value.items()}
        return [self.marked(item) for item in value] if isinstance(value, list | tuple) else value

    def _text(self, text: str) -> str:
        text = self._pattern.sub(self._mark, text.replace(_MARK, _REPLACED))
        # A name may go on in the text that the template puts after this one.
        end = len(text.rstrip())
        for start in range(max(0, end - self._longest), end):
            if text[start:end] in self._beginnings:
                return text[: start + 1] + _MARK + text[start + 1 :]
        return text

    def _mark(self, found: re.Match[str]) -> str:
        return found[0][0] + _MARK + found[0][1:] if found[0] in self._names else found[0]


def without_marks(text: str) -> str:
    """The text as it is shown."""
    return text.replace(_MARK, "")


def pieces_between_marks(text: str) -> list[str]:
    """The pieces to tokenize one by one."""
    return text.split(_MARK)
