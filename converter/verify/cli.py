"""`gemma-edge verify`."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from gemma_edge.profiles.errors import GemmaEdgeError


class ReportError(GemmaEdgeError):
    """The report cannot be written."""


@click.command("verify")
@click.argument("bundle", type=click.Path())
@click.option(
    "--checkpoint",
    required=True,
    metavar="CHECKPOINT",
    help="What it was made from: a directory, a GGUF file or a hub id.",
)
@click.option("--text", type=click.Path(path_type=Path), help="A text file to read.  [default: a built-in text]")
@click.option(
    "--tokens", type=click.Path(path_type=Path), help="Token ids to read: little-endian uint16 (.u32: uint32)."
)
@click.option("--limit", default=1024, show_default=True, help="Tokens to read, at most.")
@click.option("--window", default=256, show_default=True, help="Tokens per independent window.")
@click.option("--against", type=click.Path(), help="A second bundle, measured on the same text.")
@click.option("--lora", type=click.Path(path_type=Path), help="The adapter that was merged into the checkpoint.")
@click.option("--slice", metavar="NAME|FILE", help="The slice that was cut out of the checkpoint.")
@click.option("--gate", default="", metavar="GATES", help="Bounds, such as kl<=0.02,top1>=0.95,ppl<=1.02.")
@click.option("--prompts", type=click.Path(path_type=Path), help="JSON lines: prompt, and expect or json.")
@click.option("--seed", default=0, show_default=True, help="Random seed for the confidence intervals.")
@click.option("--threads", type=int, help="Cores for the bundle.  [default: half of them, at most 4]")
@click.option("--cache-dir", help="Folder for packed weights.  [default: ~/.cache/gemma-edge]")
@click.option("--html", type=click.Path(path_type=Path), help="Write an HTML report with plots to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def verify_main(html: Path | None, as_json: bool, **request: Any) -> None:
    """Measure what conversion did to a model, and name known faults.

    The checkpoint is evaluated in numpy, one weight in memory at a time. Exit status 1: a fault was found, a gate
    failed, or, where no gates are given, the bundle is not usable.
    """
    from gemma_edge.converter.progress import bars
    from gemma_edge.converter.quality.verdict import Verdict
    from gemma_edge.converter.verify.show.charts import WITHOUT_PICTURES, can_draw
    from gemma_edge.converter.verify.show.html import html_report
    from gemma_edge.converter.verify.verify import verify

    if html is not None and not html.parent.is_dir():
        raise ReportError(f"{html}: cannot be written, its folder does not exist; choose another place")
    if html is not None and html.is_dir():
        raise ReportError(f"{html}: cannot be written, it is a folder; name a file")
    with bars(Console(stderr=True)) as stage:
        report = verify(stage=stage, **request)
    if as_json:
        click.echo(report.json())
    else:
        report.print(Console())
    for finding in report.findings:
        click.echo(f"fault: {finding.name}: {finding.evidence}", err=True)
    for gate in report.gates:
        if not gate.holds:
            click.echo(str(gate), err=True)
    if report.verdict is Verdict.NOT_USABLE and not report.gates:
        click.echo(report.told, err=True)
    if html is not None:  # at the end: what was measured is told, whether the page can be written or not
        _write(html, html_report(report))
        if not can_draw():
            click.echo(f"{html}: {WITHOUT_PICTURES}", err=True)
    if not report.passed:
        raise click.exceptions.Exit(1)


def _write(path: Path, page: str) -> None:
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ReportError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
