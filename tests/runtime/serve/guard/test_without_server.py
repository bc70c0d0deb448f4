"""The guard as part of another program, without what the server needs."""

import subprocess
import sys


def test_guard_and_monitor_need_no_server() -> None:
    """Nor RE2, as long as no policy has rules."""
    program = """
import sys
for name in ("starlette", "uvicorn", "re2"):
    sys.modules[name] = None
from gemma_edge.runtime.serve.guard.guard import Guard
from gemma_edge.runtime.serve.guard.policy import Policy
from gemma_edge.runtime.serve.guard.rules import PolicyError
from gemma_edge.runtime.serve.guard.sanitise import SanitiseError, Sanitising
Guard().admit(Guard().caller("me"), "r", 1)
for make, error in (
    (lambda: Policy.of({"category": [{"name": "w", "words": ["x"], "input": "log"}]}), PolicyError),
    (lambda: Sanitising().clean("x"), SanitiseError),
):
    try:
        make()
    except error as caught:
        print(caught)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "policy, category 1 (w): content policies need google-re2; run pip install 'gemma-edge[serve]'",
        "stripping markup needs google-re2; run pip install 'gemma-edge[serve]'",
    ]
