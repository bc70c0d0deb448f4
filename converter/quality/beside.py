"""The report beside a bundle: where it lies, and what it says of quality."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.printing import printable
from gemma_edge.converter.quality.acceptance import quality_line
from gemma_edge.converter.quality.verdict import Verdict
from gemma_edge.profiles.plain_file import read_plain
from gemma_edge.runtime.formats.atomic import OutputError


def report_path(bundle: Path) -> Path:
    """model.litertlm -> model.litertlm.json."""
    return bundle.parent / f"{bundle.name}.json"


def quality_beside(bundle: Path, nbytes: int) -> dict[str, Any] | None:
    """What the report beside a bundle of that size says of its quality; None where it has none."""
    try:
        values = json.loads(read_plain(report_path(bundle)))
        quality: dict[str, Any] = values["quality"]
        return quality if values["output"]["bytes"] == nbytes and quality_line(quality) else None
    except (OSError, ValueError, LookupError, TypeError):  # whatever else lies there under that name
        return None


def print_quality(quality: Mapping[str, Any] | None, console: Console) -> None:
    """In one line, in red where the bundle is not usable; nothing where nothing is known."""
    if quality is not None:
        style = "bold red" if quality["verdict"] == Verdict.NOT_USABLE else None
        console.print(printable(quality_line(quality)), highlight=False, markup=False, style=style, soft_wrap=True)


def spare_inputs(source: Checkpoint, out: Path) -> None:
    """Raises OutputError where the bundle or its report would replace a file that it is made from."""
    inputs = {path.resolve() for path in source.input_files()}
    for path in (out, report_path(out)):
        if path.resolve() in inputs:
            raise OutputError(f"{path}: is part of the checkpoint that is converted; choose another output")
