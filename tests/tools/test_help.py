"""Every tool starts: its imports hold, and it says what it does."""

from importlib import import_module
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

FOLDER = Path(__file__).parents[2] / "tools"
TOOLS = sorted(path.stem for path in FOLDER.glob("*.py") if '__name__ == "__main__"' in path.read_text("utf-8"))


def test_tools_are_found() -> None:
    assert len(TOOLS) > 20


@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_says_what_it_does(name: str) -> None:
    command = import_module(f"tools.{name}").main
    assert isinstance(command, click.Command), "one library for command lines: click"
    found = CliRunner().invoke(command, ["--help"])
    assert found.exit_code == 0
    assert command.help
    assert command.help.split()[0] in found.output
