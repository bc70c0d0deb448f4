"""Open engines, use them, and drop them without `close`; print what that leaves.

    python -m tools.drop_engines MODEL CACHE_DIR

Prints what a round of engines adds at least: bytes of anonymous memory, file descriptors and threads. A leak adds to
every round; an allocator that takes one more arena, or gives one back, only to some.
"""

import ctypes
import gc
from itertools import pairwise
from pathlib import Path

import click

from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.memory.reading import read_memory_exact


def use(model: Path, cache_dir: Path) -> None:
    """A session, and a conversation that is left amid a reply."""
    engine = Engine(str(model), cache_dir=str(cache_dir))
    session = engine.create_session(max_output_tokens=5)
    session.run_prefill(["In the beginning"])
    session.run_decode()
    next(engine.create_conversation().send_message_async("x"))


def use_several(model: Path, cache_dir: Path, count: int) -> tuple[int, int, int]:
    """Bytes, descriptors and threads of this process behind them."""
    for _ in range(count):
        use(model, cache_dir)
        gc.collect()  # graphs of ONNX are cycles
    ctypes.CDLL(None).malloc_trim(0)
    descriptors, threads = (len(list(Path(f"/proc/self/{kind}").iterdir())) for kind in ("fd", "task"))
    return read_memory_exact().anon_bytes, descriptors, threads


@click.command(help=__doc__)
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.argument("cache_dir", type=click.Path(file_okay=False, path_type=Path))
@click.option("--before", default=20, show_default=True, help="Engines that nothing is read behind.")
@click.option("--rounds", default=4, show_default=True)
@click.option("--each", default=50, show_default=True, help="Engines in a round.")
def main(model: Path, cache_dir: Path, before: int, rounds: int, each: int) -> None:
    """Prints three numbers."""
    readings = [use_several(model, cache_dir, count) for count in (before, *[each] * rounds)]
    steps = [[after - start for start, after in zip(*pair, strict=True)] for pair in pairwise(readings)]
    print(*map(min, zip(*steps, strict=True)))


if __name__ == "__main__":
    main()
