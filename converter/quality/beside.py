"""The report beside a bundle: where it lies, and what it says of quality."""

import json
from collections.abc import Callable, Mapping
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


def quality_beside(bundle: Path, nbytes: int, sha256: Callable[[], str]) -> dict[str, Any]:
    """What the report beside a bundle says of its quality, as `quality`; None where there is none.

    `report`: why it says nothing, where there is a report. nbytes, sha256: of the bundle, as its report has them.
    """
    path = report_path(bundle)
    try:
        values = json.loads(read_plain(path))
        quality, output = values["quality"], values["output"]
        is_known = bool(quality_line(quality))
        is_same = output["bytes"] == nbytes and output["sha256"] == sha256()
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # whatever else lies there under that name
        return {"quality": None}
    if not is_same:
        return {"quality": None, "report": f"{path.name} is another bundle's; convert again to have this one's"}
    return {"quality": quality if is_known else None}


def print_quality(quality: Mapping[str, Any] | None, console: Console) -> None:
    """In one line, in red where the bundle is not usable; nothing where nothing is known."""
    if quality is not None:
        style = "bold red" if quality["verdict"] == Verdict.NOT_USABLE else None
        console.print(printable(quality_line(quality)), highlight=False, markup=False, style=style, soft_wrap=True)


def print_beside(values: Mapping[str, Any], console: Console) -> None:
    """What `quality_beside` found."""
    print_quality(values["quality"], console)
    if "report" in values:
        console.print(printable(values["report"]), highlight=False, markup=False, soft_wrap=True)


def spare_inputs(source: Checkpoint, out: Path) -> None:
    """Raises OutputError where the bundle or its report would replace a file that it is made from."""
    inputs = {path.resolve() for path in source.input_files()}
    for path in (out, report_path(out)):
        if path.resolve() in inputs:
            raise OutputError(f"{path}: is part of the checkpoint that is converted; choose another output")
