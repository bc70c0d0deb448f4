"""The one exception that means: the user can act on this."""

from typing import ClassVar


class GemmaEdgeError(Exception):
    """An error the caller can act on. The message is one line: what; found against expected; what to do next.

    The command line prints it without a traceback and exits with `exit_status`. Lives in the lowest layer so that
    every other layer can derive from it.
    """

    exit_status: ClassVar[int] = 1
