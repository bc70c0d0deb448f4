"""`gemma-edge compare`: the runtime's, of what it does not run as well: see measure/weights_subject.py."""

from pathlib import Path
from typing import Any

import click

from gemma_edge.runtime.measure.compare_cli import compare_main as of_the_runtime

_WEIGHTS = "gemma_edge.converter.verify.compare_weights"


def _compare(a: str, b: str, text: Path | None, tokens: Path | None, **options: Any) -> None:
    from gemma_edge.runtime.measure.compare_cli import compare_paths

    compare_paths((a, b), (text, tokens), module_of=_module_of, **options)


def _module_of(path: str) -> str | None:
    """None for what our runtime runs, or says what is wrong with."""
    from gemma_edge.converter.plan.output import format_at
    from gemma_edge.profiles.paths import user_path

    return None if format_at(user_path(path)).runs else _WEIGHTS


compare_main = click.Command(
    "compare",
    callback=_compare,
    params=of_the_runtime.params,
    help="Compare two models of one checkpoint on the same text: bundles, ONNX directories, GGUF files and "
    "compressed-tensors directories. The last two are not run: their weights are, in numpy, float32.",
)
