"""What shells offer at the Tab key: bash itself is asked; of zsh and fish, the words that they would send."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from gemma_edge.converter.cli import main
from gemma_edge.profiles.completion import PROGRAMS, variable
from gemma_edge.profiles.device import profile_names
from gemma_edge.runtime.formats.encoding import NAMES

SCRIPTS = Path(sys.executable).parent
# A command line as bash takes it apart, in which the last word is to be completed: what is offered.
LINES = {
    ("gemma-edge", "comp"): {"compare", "completion"},
    ("gemma-edge", "convert", "--target", "e4b-int"): {"e4b-int8", "e4b-int4"},
    ("gemma-edge", "convert", "--target", "=", "e2b-int"): {"e2b-int8", "e2b-int4"},
    ("gemma-edge", "plan", "--target", "e3.39-f"): {"e3.39-fp32", "e3.39-fp16"},
    ("gemma-edge", "serve", "x.litertlm", "--profile", "phone"): {"phone-1.5gb", "phone-2gb", "phone-3gb"},
    ("convert", "--recipe", "a"): {"auto"},
    ("convert", "--encoding", "head", "="): set(NAMES),
    ("convert", "--encoding", "head", "=", "int8-b"): {"int8-b32", "int8-b64", "int8-b128", "int8-b256"},
    ("convert", "--encoding", "=", "head", "=", "bf"): {"bf16"},
    ("convert", "--modalities", "text,v"): {"text,vision"},
}


def _complete(program: str, shell: str, **environment: str) -> str:
    """What the program answers to a shell."""
    named = environment | {variable(program): f"{shell}_complete"}
    return subprocess.run(
        [SCRIPTS / program], env=os.environ | named, capture_output=True, text=True, check=True
    ).stdout


def test_bash_completes() -> None:
    script = ['eval "$(gemma-edge completion bash)"']
    for words in LINES:
        quoted = " ".join(f"'{word}'" for word in words)
        function = f"_{words[0].replace('-', '_')}_completion"
        script += [f"COMP_WORDS=({quoted}) COMP_CWORD={len(words) - 1} COMPREPLY=()", f"{function} {words[0]}"]
        script += ['echo "${COMPREPLY[*]}"']
    environment = os.environ | {"PATH": f"{SCRIPTS}:{os.environ['PATH']}"}
    command = ["bash", "--norc", "-c", "\n".join(script)]
    asked = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert not asked.stderr
    offered = [set(line.split()) for line in asked.stdout.splitlines()]
    assert dict(zip(LINES, offered, strict=True)) == LINES


def test_zsh_and_fish_get_whole_words() -> None:
    words = "convert\n--target=e2b-int"
    zsh = _complete("convert", "zsh", COMP_WORDS=words, COMP_CWORD="1").splitlines()
    assert zsh == ["plain", "--target=e2b-int8", "_", "plain", "--target=e2b-int4", "_"]
    fish = _complete("convert", "fish", COMP_WORDS=words, COMP_CWORD="--target=e2b-int").splitlines()
    assert fish == ["plain,--target=e2b-int8", "plain,--target=e2b-int4"]


@pytest.mark.parametrize("option", ["--checkpoint", "--out", "--profile", "--recipe", "--slice", "--lora"])
def test_files_are_offered_where_no_name_fits(option: str) -> None:
    asked = CliRunner(env={variable("gemma-edge"): "bash_complete", "COMP_CWORD": "3"}).invoke(
        main, env={"COMP_WORDS": f"gemma-edge\nconvert\n{option}\n./x"}, prog_name="gemma-edge"
    )
    assert asked.output == "file,./x\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_serves_both_programs(shell: str) -> None:
    printed = CliRunner().invoke(main, ["completion", shell], prog_name="gemma-edge")
    assert printed.exit_code == 0
    for program in PROGRAMS:
        assert f"{variable(program)}={shell}_complete" in printed.output
    if shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=printed.output, capture_output=True, text=True, check=False)
        assert not checked.stderr


def test_another_shell_is_refused() -> None:
    refused = CliRunner().invoke(main, ["completion", "tcsh"])
    assert refused.exit_code == 2
    assert "'tcsh' is not one of 'bash', 'zsh', 'fish'" in refused.output


def _options(command: click.Command, context: click.Context, name: str) -> Iterator[tuple[click.Context, click.Option]]:
    """Every option of that name, of this command and those below it."""
    for parameter in command.params:
        if isinstance(parameter, click.Option) and name in parameter.opts:
            yield context, parameter
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            assert found is not None
            yield from _options(found, click.Context(found, context, below), name)


def test_every_profile_option_offers_the_profiles() -> None:
    found = list(_options(main, click.Context(main), "--profile"))
    assert len(found) > 5
    for context, option in found:
        assert [item.value for item in option.shell_complete(context, "")] == profile_names(), context.command_path
