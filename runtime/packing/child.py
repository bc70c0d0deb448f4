"""How a Python process of ours is started.

With -P: without it, a module of the standard library, or numpy, that lies in the folder where the user stands would be
imported instead of the real one. And only if there is a Python to start: in a frozen app (PyInstaller, Nuitka), or a
program with Python inside, `sys.executable` is that program, which would start again from its beginning.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from gemma_edge.profiles.errors import GemmaEdgeError

_INTERPRETER = re.compile(r"\.?(python|pypy|graalpy)", re.IGNORECASE)  # Nix wraps its own as .python3-wrapped
_PACKING = "GEMMA_EDGE_PACKING"


class ChildError(GemmaEdgeError, RuntimeError):
    """There is no Python to start a process with."""


def has_interpreter() -> bool:
    """Whether `sys.executable` is Python, and not the program that we are part of."""
    executable = sys.executable or ""
    is_frozen = bool(getattr(sys, "frozen", False)) or "__compiled__" in globals()  # the second is Nuitka's
    return not is_frozen and bool(_INTERPRETER.match(Path(executable).name)) and os.access(executable, os.X_OK)


def python_command(module: str, *arguments: str, python: str | None = None) -> list[str]:
    """What runs a module of ours in a process of its own. python: an interpreter, by default the one that runs this.

    Raises ChildError in an app that is no Python.
    """
    if python is None and not has_interpreter():
        program = sys.executable or "this program"
        raise ChildError(
            f"a measurement needs Python in a process of its own, and {program} is not Python; run it with an "
            "installed gemma-edge"
        )
    return [python or sys.executable, "-P", "-m", module, *arguments]


def refuse_to_pack_again() -> None:
    """Raises ChildError in a process that was started to pack, and began the whole app instead: it would wait for what
    its parent holds.
    """
    if os.environ.get(_PACKING):
        raise ChildError(
            f"{sys.executable} was started to pack weights, and is not Python but an app; set sys.frozen in the app, "
            "so that it packs them itself"
        )


def run_child(
    module: str,
    arguments: Sequence[str],
    here: Callable[[], None],
    limit_s: float | None = None,
    folder: Path | None = None,
    lock: int | None = None,
) -> tuple[int, str]:
    """Run the program `module`, which packs weights; its status and what it wrote to standard error.

    folder: where it runs. lock: a descriptor that it inherits, so that what is locked stays locked while it lives.
    Where there is no Python to start, `here` does it in this process, whose memory then keeps what that took.

    Raises subprocess.TimeoutExpired after `limit_s`.
    """
    if not has_interpreter():
        try:
            here()
        except GemmaEdgeError as error:
            return 1, str(error)
        return 0, ""
    done = subprocess.run(
        python_command(module, *arguments),
        cwd=folder, pass_fds=() if lock is None else (lock,), env={**os.environ, _PACKING: "1"}, timeout=limit_s,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    return done.returncode, done.stderr
