"""What every tracked source file keeps to."""

import re
import subprocess
from pathlib import Path

import pytest

LONGEST_LINES = 400
SAMPLES = (  # whose paths are examples
    "tests/test_files.py",
    "tests/runtime/serve/deploy/test_files.py",
    "tests/runtime/serve/monitor/test_webhook.py",
)
# Absolute paths of somebody's machine, but for where runtime/DEPLOY.md installs to.
MACHINE_PATHS = re.compile(r"(?<![\w./-])(?:/(?:Users|home|mnt|opt|root|srv|work)/(?!gemma-edge\b)\w|file:///\w)")


def _tracked(repository: Path, *patterns: str) -> list[Path]:
    """The files that git tracks, links excluded."""
    command = ["git", "-C", str(repository), "ls-files", "-z", "--", *patterns]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    paths = [repository / name for name in names if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


@pytest.fixture(scope="module", autouse=True)
def _needs_git(repository: Path) -> None:
    if not (repository / ".git").exists():
        pytest.skip("not a git checkout: no list of tracked files")


def test_a_module_is_one_idea(repository: Path) -> None:
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path in _tracked(repository, "*.py")}
    too_long = {str(path.relative_to(repository)): n for path, n in lines.items() if n > LONGEST_LINES}
    assert lines
    assert not too_long, f"modules over {LONGEST_LINES} lines: {too_long}"


def test_no_machine_paths(repository: Path) -> None:
    found = []
    for path in _tracked(repository):
        if str(path.relative_to(repository)) in SAMPLES:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # binary: weights, tokenizers, token ids
        found += [f"{path.relative_to(repository)}: {hit.group()}" for hit in MACHINE_PATHS.finditer(text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("text", ["open('/home/ann/x')", "prefix = /opt/models", "file:///mnt"])
def test_machine_paths_are_recognised(text: str) -> None:
    assert MACHINE_PATHS.search(text)


@pytest.mark.parametrize("text", ["#!/usr/bin/env bash", "https://example.org/home/x", "a/tmp/b", "/proc/self/status"])
def test_other_paths_are_not(text: str) -> None:
    assert not MACHINE_PATHS.search(text)
