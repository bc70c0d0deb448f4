"""`gemma-edge batch`."""

import json
import os
from pathlib import Path

import click
from rich.console import Console

from gemma_edge.profiles.sizes import parse_size


class _Size(click.ParamType[int]):
    name = "SIZE"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """("4GiB") -> 4294967296."""
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except ValueError:
            self.fail(f"{value!r}: expected a number with its unit, such as 4GiB or 900MiB", param, ctx)


@click.command("batch")
@click.argument("joblist", metavar="LIST", type=click.Path(path_type=Path))
@click.option(
    "--jobs", type=click.IntRange(1), default=os.cpu_count() or 1, help="Conversions at once.  [default: all cores]"
)
@click.option("--memory", type=_Size(), default="4GiB", show_default=True, help="For all of them together.")
@click.option("--retries", type=click.IntRange(0), default=2, show_default=True, help="Of a job that was killed.")
@click.option("--only", multiple=True, metavar="NAME", help="Only this job of the list; repeatable.")
@click.option("--print-snakefile", is_flag=True, help="Print a workflow that does the same list, for Snakemake.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def batch_main(
    joblist: Path, jobs: int, memory: int, retries: int, only: tuple[str, ...], print_snakefile: bool, as_json: bool
) -> None:
    """Convert every checkpoint of a TOML list, and do again only what has changed.

    Exit status 1: a job failed; the others are done all the same.
    """
    from importlib.resources import files

    from gemma_edge.converter.batch.batch import run_batch
    from gemma_edge.converter.batch.joblist import BatchError, read_list
    from gemma_edge.converter.batch.show import live_table, table_of, values_of
    from gemma_edge.converter.batch.work import State

    listed = read_list(joblist)
    if print_snakefile:
        click.echo((files("gemma_edge.converter.batch") / "Snakefile").read_text("utf-8"), nl=False)
        return
    names = [job.name for job in listed]
    if unknown := [name for name in only if name not in names]:
        raise BatchError(f"only {unknown[0]}: no job of that name in {joblist}; the first is {names[0]}")
    chosen = [job for job in listed if not only or job.name in only]
    with live_table([job.name for job in chosen], Console(stderr=True)) as on_change:
        outcomes = run_batch(chosen, jobs, memory, retries, on_change)
    if as_json:
        click.echo(json.dumps(values_of(outcomes), indent=2))
    else:
        Console().print(table_of(outcomes))
    if any(outcome.state is State.FAILED for outcome in outcomes):
        raise click.exceptions.Exit(1)
