"""What a shell offers at the Tab key: `gemma-edge completion`, and the names that options take.

click asks and answers (click.palletsprojects.com/shell-completion); here is what it cannot know: two programs, names
that are read from files, and that shells differ in what a word with "=" is.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any, Final

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
    get_completion_class,
)

from gemma_edge.profiles.device import profile_names

PROGRAMS: Final = ("gemma-edge", "convert")
"""The console scripts."""


def variable(program: str) -> str:
    """The environment variable by which a shell asks a program, as click names it."""
    return f"_{program}_COMPLETE".replace("-", "_").upper()


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_main(context: click.Context, shell: str) -> None:
    """Print a script by which SHELL completes commands, options, names and files of gemma-edge and convert.

    \b
    bash: gemma-edge completion bash >> ~/.bash_completion
    zsh:  gemma-edge completion zsh >> ~/.zshrc, after the line with compinit
    fish: gemma-edge completion fish > ~/.config/fish/conf.d/gemma-edge.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None, "click knows all three"
    for program in PROGRAMS:
        click.echo(kind(context.find_root().command, {}, program, variable(program)).source())


def offer(
    *groups: Callable[[], Iterable[str]], files: bool = False
) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem[Any]]]:
    """For `shell_complete` of an option: the first group that has names which begin like the word; else maybe files."""

    def complete(_context: click.Context, _parameter: click.Parameter, word: str) -> list[CompletionItem[Any]]:
        for group in groups:
            if found := [CompletionItem(name) for name in group() if name.startswith(word)]:
                return found
        return [CompletionItem(word, type="file")] if files else []

    return complete


offer_profiles = offer(profile_names, files=True)
"""For `--profile`."""


@add_completion_class
class _Bash(BashComplete):
    """Puts `role=int4` together again, and answers with `int4`: for bash a word ends at each "="."""

    def get_completion_args(self) -> tuple[list[str], str]:
        words = os.environ["COMP_WORDS"].split("\n")[: int(os.environ["COMP_CWORD"]) + 1]
        joined: list[str] = []
        for word in words:
            if joined and (word == "=" or joined[-1].endswith("=")):
                joined[-1] += word
            else:
                joined.append(word)
        os.environ |= {"COMP_WORDS": "\n".join(joined), "COMP_CWORD": str(len(joined) - 1)}
        return super().get_completion_args()

    def format_completion(self, item: CompletionItem[Any]) -> str:
        word = os.environ["COMP_WORDS"].rpartition("\n")[2]
        value = word.partition("=")[2] if word.startswith("-") else word
        return f"{item.type},{item.value.removeprefix(value[: value.rfind('=') + 1])}"


class _WholeWord(ShellComplete):
    """Answers `--target=e2b` with all of `--target=e2b-int4`: the answer takes the word's place."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[str]]:
        option = incomplete[: incomplete.find("=") + 1] if incomplete.startswith("-") else ""
        found = super().get_completions(args, incomplete)
        for item in found:
            item.value = option + item.value
        return found


@add_completion_class
class _Zsh(_WholeWord, ZshComplete):
    pass


@add_completion_class
class _Fish(_WholeWord, FishComplete):
    pass
