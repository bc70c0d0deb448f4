"""The one exception that means: the user can act on this."""

import re
from typing import ClassVar, Final

_LONGEST_MESSAGE: Final = 1000
"""Characters. Messages quote what they found, which may be a whole file."""
_CONTROLS: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class GemmaEdgeError(Exception):
    """An error the caller can act on. The message is one line: what; found against expected; what to do next.

    The command line prints it without a traceback and exits with `exit_status`. Lives in the lowest layer so that
    every other layer can derive from it.
    """

    exit_status: ClassVar[int] = 1

    def __str__(self) -> str:
        """The message, in one line whatever it quotes; of a long one the beginning, and the end: what to do."""
        text = _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], super().__str__())
        if len(text) <= _LONGEST_MESSAGE:
            return text
        kept = _LONGEST_MESSAGE // 2
        return f"{text[:kept]} [{len(text) - 2 * kept:,} characters] {text[-kept:]}"
