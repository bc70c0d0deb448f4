"""How fast each encoding quantizes, and what the scale search buys: values per CPU second, and the error.

    python -m tools.bench_quantize [--rows 1024] [--columns 2048] [--repeat 5]

The values are Student t with 5 degrees of freedom, tails somewhat heavier than a Gaussian's, as weights have.
"""

import time

import click
import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.quantize.quantize import Quantized, Search, quantize_rows
from gemma_edge.runtime.formats.encoding import BLOCKS, Encoding

NAMES = ("fp16", "int8", "int4", *(f"int4-b{block}" for block in BLOCKS), "int2")


def timed(values: NDArray[np.float32], encoding: Encoding, search: Search, repeat: int) -> tuple[float, Quantized]:
    """The best of `repeat` rates, in values per CPU second of this thread, and the result."""
    seconds = []
    for _ in range(repeat):
        begin = time.thread_time()
        quantized = quantize_rows(values, encoding, search)
        seconds.append(time.thread_time() - begin)
    return values.size / min(seconds), quantized


@click.command()
@click.option("--rows", default=1024, show_default=True)
@click.option("--columns", default=2048, show_default=True)
@click.option("--repeat", default=5, show_default=True, help="The fastest counts.")
def main(rows: int, columns: int, repeat: int) -> None:
    """Print the table as Markdown."""
    generator = np.random.default_rng(0)
    values = (generator.standard_t(5, (rows, columns)) * 0.02).astype(np.float32)
    click.echo(
        "| encoding | search | M values per CPU second | SNR, dB | squared error, of absmax's |\n|---|---|---|---|---|"
    )
    for name in NAMES:
        encoding = Encoding.parse(name)
        plain = quantize_rows(values, encoding, Search.ABSMAX).error.squared
        for search in Search if encoding.kind == "int" and encoding.bits < 8 else (Search.ABSMAX,):
            rate, quantized = timed(values, encoding, search, repeat)
            error = quantized.error
            click.echo(f"| {name} | {search} | {rate / 1e6:.0f} | {error.snr_db:.2f} | {error.squared / plain:.3f} |")


if __name__ == "__main__":
    main()
