"""Compare a Hugging Face checkpoint, in transformers, with a bundle or an ONNX directory.

    python -m tools.compare_checkpoint tests/fixtures/tiny-gemma3n model.litertlm --tokens tests/fixtures/val.bin

The checkpoint is A. It runs in float32 in this process, so that its memory includes that of torch.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import numpy as np
import torch
import transformers

from gemma_edge.runtime.measure.compare import Cost, Logits, compare
from gemma_edge.runtime.measure.compare_cli import comparison_table
from gemma_edge.runtime.measure.compare_process import ModelProcess
from gemma_edge.runtime.memory.reading import read_memory


class CheckpointModel:
    """A checkpoint behind `Comparable`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self._tokens, self._seconds = 0, 0.0

    def score(self, token_ids: Sequence[int]) -> Iterator[Logits]:
        started = time.perf_counter()
        with torch.no_grad():
            logits = self._model(torch.tensor([list(token_ids)])).logits[0].numpy()
        self._seconds += time.perf_counter() - started
        self._tokens += len(token_ids)
        yield from logits

    def greedy(self, token_ids: Sequence[int], count: int) -> list[int]:
        found = self._model.generate(
            torch.tensor([list(token_ids)]), max_new_tokens=count, do_sample=False, eos_token_id=None
        )
        continuation: list[int] = found[0, len(token_ids) :].tolist()
        return continuation

    def cost(self) -> Cost:
        """The speed is that of whole windows at once."""
        memory = read_memory()
        size = sum(file.stat().st_size for file in self._path.glob("*.safetensors"))
        return Cost(size, memory.anon_bytes, memory.file_bytes, self._tokens / self._seconds)


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("model")
@click.option("--tokens", required=True, type=click.Path(exists=True, dir_okay=False), help="Ids: uint16.")
@click.option("--limit", default=2048, show_default=True)
@click.option("--window", default=256, show_default=True)
@click.option("--cache-dir")
def main(checkpoint: Path, model: str, tokens: str, limit: int, window: int, cache_dir: str | None) -> None:
    """Print the distance of MODEL from CHECKPOINT."""
    token_ids = np.fromfile(tokens, "<u2")[:limit].tolist()
    with ModelProcess(model, None, cache_dir) as process:
        click.echo(comparison_table(compare(CheckpointModel(checkpoint), process, token_ids, window, 32)))


if __name__ == "__main__":
    main()
