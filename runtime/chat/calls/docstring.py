"""What a docstring says about a function and its parameters: Google's style, and Sphinx's :param lines."""

import inspect
import re
from dataclasses import dataclass
from typing import Any

_SECTION = re.compile(
    r"(Args|Arguments|Parameters|Returns?|Raises|Yields?|Examples?|Notes?|Attributes|Warnings?|See Also):?\s*$"
)
_PARAMETERS = re.compile(r"(Args|Arguments|Parameters):?\s*$")
_FIELD = re.compile(r":(\w+)(?:\s+[^:]*)?:")
_SPHINX = re.compile(r":param\s+(?:[^:]*\s)?\*{0,2}(\w+)\s*:\s*(.*)")


@dataclass(frozen=True)
class Docstring:
    """text: everything before the first section, with each paragraph on one line. parameters: by name."""

    text: str
    parameters: dict[str, str]


def docstring_of(documented: Any) -> Docstring:
    """Read the docstring of a function or class; both parts are empty where it has none."""
    lines = (inspect.getdoc(documented) or "").split("\n")
    end = next((i for i in range(len(lines)) if _begins_section(lines, i)), len(lines))
    paragraphs = "\n".join(line.strip() for line in lines[:end]).strip().split("\n\n")
    text = "\n".join(" ".join(paragraph.split("\n")) for paragraph in paragraphs)
    return Docstring(text, _google(lines) | _sphinx(lines))


def _begins_section(lines: list[str], index: int) -> bool:
    """ "Args:", ":param x: ...", or NumPy's title with a line of dashes under it."""
    line = lines[index]
    underlined = index + 1 < len(lines) and re.fullmatch(r"\s*-{3,}\s*", lines[index + 1]) is not None
    is_title = _SECTION.match(line) is not None and (line.rstrip().endswith(":") or underlined)
    return is_title or _FIELD.match(line) is not None


def _google(lines: list[str]) -> dict[str, str]:
    """The "Args:" section. A description goes on in lines that are indented further; an empty line ends it."""
    descriptions: dict[str, str] = {}
    start = next((i for i, line in enumerate(lines) if _PARAMETERS.match(line.strip())), len(lines))
    name = None
    for line in lines[start + 1 :]:
        if line.strip().endswith(":") and _SECTION.match(line.strip()) and not line.startswith(" "):
            break
        match = re.match(r"\s+\*{0,2}([\w.]+)(?:\s*\(.*?\))?:\s*(.*)", line)
        if match:
            name = match[1]
            descriptions[name] = match[2].strip()
        elif not line.strip():
            name = None
        elif name is not None and line.startswith(" " * 4):
            descriptions[name] = f"{descriptions[name]} {line.strip()}".strip()
    return descriptions


def _sphinx(lines: list[str]) -> dict[str, str]:
    """The :param lines, each with the indented ones after it."""
    descriptions: dict[str, str] = {}
    name = None
    for line in lines:
        match = _SPHINX.match(line)
        if match:
            name = match[1]
            descriptions[name] = match[2].strip()
        elif name is not None and line.startswith(" ") and line.strip():
            descriptions[name] += " " + line.strip()
        else:
            name = None
    return descriptions
