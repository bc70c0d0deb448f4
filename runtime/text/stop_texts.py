"""Texts that end a reply, found wherever tokens divide them."""

from collections.abc import Sequence


class StopTexts:
    """Cuts a growing text before the first of several texts, and holds back what may become one."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = [text for text in texts if text]
        self._held = ""
        self.is_found = False

    def feed(self, text: str) -> str:
        """The text that is certain now; nothing more once one was found."""
        if self.is_found or not self._texts:
            return "" if self.is_found else text
        self._held += text
        found = [at for stop in self._texts if (at := self._held.find(stop)) >= 0]
        if found:
            self.is_found = True
            certain, self._held = self._held[: min(found)], ""
            return certain
        keep = max(_beginning(self._held, stop) for stop in self._texts)
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return certain

    def finish(self) -> str:
        """What was held back and became none."""
        held, self._held = self._held, ""
        return held


def _beginning(text: str, stop: str) -> int:
    """The length of the longest end of `text` that `stop` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
