"""`gemma-edge slice`."""

from pathlib import Path

import click
from rich.console import Console


@click.command("slice")
@click.option("--checkpoint", required=True, help="Gemma 3n E4B: a directory or a hub id.")
@click.option(
    "--slice", "choice", required=True, metavar="NAME|FILE", help="A published name (e3.39), a TOML or CSV file."
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The directory to write.")
def slice_main(checkpoint: str, choice: str, out: Path) -> None:
    """Write a slice of Gemma 3n E4B as a Hugging Face checkpoint, for vLLM, MLX or fine-tuning.

    `convert --slice` does not need it: it cuts while it converts.
    """
    from gemma_edge.converter.checkpoint.hub import resolve_checkpoint
    from gemma_edge.converter.checkpoint.slices.write import write_slice
    from gemma_edge.converter.models.matformer.files import slice_of
    from gemma_edge.converter.progress import bars

    wanted = slice_of(choice)
    with bars(Console(stderr=True)) as stage:
        write_slice(resolve_checkpoint(checkpoint, "custom"), wanted, out, stage)
    click.echo(f"{out}: written")
