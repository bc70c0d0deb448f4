"""The report beside a bundle: where it lies, and what it says of quality."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from gemma_edge.converter.printing import printable
from gemma_edge.converter.quality.acceptance import quality_line
from gemma_edge.converter.quality.verdict import Verdict


def report_path(bundle: Path) -> Path:
    """model.litertlm -> model.litertlm.json."""
    return bundle.parent / f"{bundle.name}.json"


def quality_beside(bundle: Path, nbytes: int) -> dict[str, Any] | None:
    """What the report beside a bundle of that size says of its quality; None where it has none."""
    try:
        values = json.loads(report_path(bundle).read_bytes())
        quality: dict[str, Any] = values["quality"]
        return quality if values["output"]["bytes"] == nbytes and quality_line(quality) else None
    except (OSError, ValueError, LookupError, TypeError):  # whatever else lies there under that name
        return None


def print_quality(quality: Mapping[str, Any] | None, console: Console) -> None:
    """In one line, in red where the bundle is not usable; nothing where nothing is known."""
    if quality is not None:
        style = "bold red" if quality["verdict"] == Verdict.NOT_USABLE else None
        console.print(printable(quality_line(quality)), highlight=False, markup=False, style=style, soft_wrap=True)
