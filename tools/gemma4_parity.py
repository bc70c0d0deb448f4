"""How far the encoders of a converted Gemma 4 are from transformers, at full size.

    python -m tools.synthetic gemma4-e2b CHECKPOINT --encoders
    python -m tools.gemma4_parity CHECKPOINT MODEL...

A model is a bundle or an ONNX directory. Images of three shapes and clips of two lengths, the same every time.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.runtime.executors.open import open_encoders
from gemma_edge.runtime.formats.model import open_model
from gemma_edge.runtime.media.encoders import PatchesSize
from gemma_edge.runtime.media.image import Patches, PatchGrid
from tools.audio_oracle import loud_and_quiet, relative_error
from tools.gemma4_towers_oracle import Tower

SHAPES = ((1000, 1000), (640, 427), (100, 3000))  # of images, in pixels
FRAMES = (2999, 730)

Floats = NDArray[np.float32]


def pictures(grid: PatchGrid) -> Iterator[Patches]:
    """Random images of SHAPES."""
    for number, size in enumerate(SHAPES):
        rows, columns = grid.shape(*size)
        shape = (rows * grid.side, columns * grid.side, 3)
        yield grid.cut(np.random.default_rng(number).random(shape, np.float32))


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.argument("models", type=click.Path(path_type=Path, exists=True), nargs=-1, required=True)
@click.option("--threads", default=2, show_default=True)
def main(checkpoint: Path, models: tuple[Path, ...], threads: int) -> None:
    """Print the relative error of embeddings, by encoder and input."""
    opened = Checkpoint.open(checkpoint)
    size = open_encoders(open_model(models[0]), threads, threads, None).vision
    assert isinstance(size, PatchesSize)
    sight = Tower.of_checkpoint("vision", opened)
    seen = [(each, sight.embed_image(each.values[None], each.positions[None])) for each in pictures(size.grid)]
    del sight
    hearing = Tower.of_checkpoint("audio", opened)
    mels = [loud_and_quiet(1, frames, 128)[0] for frames in FRAMES]
    heard = [(mel, hearing.embed_sound(mel[None], np.ones((1, len(mel)), np.bool_))) for mel in mels]
    del hearing
    for path in models:
        click.echo(str(path))
        encoders = open_encoders(open_model(path), threads, threads, None)
        for picture, expected in seen:
            started = time.monotonic()
            error = relative_error(encoders.encode_image(picture)[0], expected)
            click.echo(f"  {len(expected):4} tokens of an image  {error:.2e}  {time.monotonic() - started:.2f} s")
        encoders.release()
        for mel, expected in heard:
            started = time.monotonic()
            error = relative_error(encoders.encode_audio(mel), expected)
            click.echo(f"  {len(mel):4} frames of sound     {error:.2e}  {time.monotonic() - started:.2f} s")
        encoders.release()


if __name__ == "__main__":
    main()
