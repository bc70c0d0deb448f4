"""What the documents tell a reader to type works."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest

from tools.demo_real import PROMPTS

DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "android_demo/README.md",
    "converter/FARM.md",
    "converter/QUALITY.md",
    "converter/SLICES.md",
    "runtime/BUDGETS.md",
    "runtime/DEPLOY.md",
    "runtime/MEDIA.md",
    "runtime/SERVE.md",
    "runtime/SERVICES.md",
)


def _commands(text: str) -> Iterator[list[str]]:
    """The command lines of ```sh blocks, continued lines joined, comments dropped."""
    for block in re.findall(r"^```sh\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def _documented(program: str) -> list[list[str]]:
    repository = Path(__file__).resolve().parent.parent
    texts = (repository.joinpath(name).read_text(encoding="utf-8") for name in DOCUMENTS)
    return [words for text in texts for words in _commands(text) if words[0] == program]


def test_make_targets_exist(repository: Path) -> None:
    targets = {target for words in _documented("make") for target in words[1:] if "=" not in target}
    assert {"demo", "demo-real", "test"} <= targets
    for target in targets:
        # Dry: `make test` runs this very test.
        made = subprocess.run(["make", "-n", target], cwd=repository, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stderr


def _make(target: str, extra: str, repository: Path, build: Path) -> str:
    """What `make` prints in this environment: its set-up is taken as done (-o), all else runs as a reader runs it."""
    environment = f"BIN={Path(sys.executable).parent}"
    command = ["make", "-o", f".venv/.installed-{extra}", target, environment, f"BUILD={build}"]
    ran = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_demo_prints_text(repository: Path, tmp_path: Path) -> None:
    printed = _make("demo", "litert", repository, tmp_path)
    assert (tmp_path / "tiny.litertlm").is_file()
    _, prompt, text = printed.partition("And God said unto")
    assert prompt
    assert "the" in text.split()  # the checkpoint learned its most common word


@pytest.mark.usefixtures("real_checkpoint")
def test_the_real_demo_measures_and_prints_text(repository: Path, tmp_path: Path) -> None:
    printed = _make("demo-real", "real", repository, tmp_path)
    assert (tmp_path / "real.litertlm").is_file()
    for wanted in ("budget", "perplexity ratio", *(f"\n{prompt} -> " for prompt in PROMPTS)):
        assert wanted in printed, wanted


def test_the_printed_sample_has_every_sentence_of_the_real_demo(repository: Path) -> None:
    """In the README, and no other."""
    text = (repository / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^(.+?) -> ", text, flags=re.MULTILINE) == list(PROMPTS)


@pytest.mark.parametrize("words", [*_documented("convert"), *_documented("gemma-edge")], ids=" ".join)
def test_commands_and_options_exist(words: list[str]) -> None:
    """Every option a document uses is one that the command's own help names."""
    program, *arguments = words
    options = [word.split("=")[0] for word in arguments if word.startswith("--")]
    named = list(takewhile(lambda word: not word.startswith("-"), arguments))  # a command may have commands of its own
    command = ["convert"] if program == "convert" else named
    script = f"from gemma_edge.converter.cli import main; main({[*command, '--help']!r})"
    helped = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert helped.returncode == 0, helped.stderr
    for option in options:
        assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", helped.stdout), f"{option}: not in the help"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_linked_files_exist(repository: Path, document: str) -> None:
    text = (repository / document).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    missing = [link for link in links if not (repository / document).parent.joinpath(link).exists()]
    assert not missing
