"""How fast each encoding quantizes, and what the scale search buys: values per CPU second, and the error.

    python -m tools.bench_quantize [--rows 1024] [--columns 2048] [--repeat 5]

The values are Student t with 5 degrees of freedom, tails somewhat heavier than a Gaussian's, as weights have.
"""

import argparse
import time

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


def main() -> None:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()

    generator = np.random.default_rng(0)
    values = (generator.standard_t(5, (arguments.rows, arguments.columns)) * 0.02).astype(np.float32)
    print(
        "| encoding | search | M values per CPU second | SNR, dB | squared error, of absmax's |\n|---|---|---|---|---|"
    )
    for name in NAMES:
        encoding = Encoding.parse(name)
        plain = quantize_rows(values, encoding, Search.ABSMAX).error.squared
        for search in Search if encoding.kind == "int" and encoding.bits < 8 else (Search.ABSMAX,):
            rate, quantized = timed(values, encoding, search, arguments.repeat)
            error = quantized.error
            print(f"| {name} | {search} | {rate / 1e6:.0f} | {error.snr_db:.2f} | {error.squared / plain:.3f} |")


if __name__ == "__main__":
    main()
