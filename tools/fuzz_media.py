"""Read mutated images and recordings: each gives pixels or sound that are finite, or is refused in one line.

    python -m tools.fuzz_media [--cases 1000] [--seed 0] [--first 0]

Seven image and five sound formats, made from noise. Sizes in headers are changed as often as what follows them.
"""

import io
import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import click
import numpy as np

from gemma_edge.runtime.media.audio import Recording
from gemma_edge.runtime.media.image import pixel_values
from gemma_edge.runtime.media.item import MediaItem, MediaKind
from tools.fuzzing import WrongError, fuzz, mutated, options, report

_IMAGES = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_SOUNDS = (("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III"))


@cache
def originals() -> Sequence[tuple[MediaKind, bytes]]:
    """One sound file of each format."""
    import soundfile
    from PIL import Image

    rng = np.random.default_rng(0)
    found = []
    for name in _IMAGES:
        for size in ((48, 64, 3), (48, 64)):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(file, name)
            found.append((MediaKind.IMAGE, file.getvalue()))
    for container, coding in _SOUNDS:
        for rate_hz, channels in ((16_000, 1), (44_100, 2)):
            file = io.BytesIO()
            samples = rng.uniform(-0.5, 0.5, (rate_hz // 2, channels)).astype(np.float32)
            soundfile.write(file, samples, rate_hz, format=container, subtype=coding)
            found.append((MediaKind.AUDIO, file.getvalue()))
    return found


def case(rng: random.Random, folder: Path) -> Callable[[], None]:
    """One changed file, and its reading."""
    kind, data = rng.choice(originals())
    head = rng.choice((32, 128, len(data)))
    path = folder / "file"
    path.write_bytes(mutated(data[:head], rng) + data[head:])
    item = MediaItem.of(kind, path)

    def work() -> None:
        if kind is MediaKind.IMAGE:
            values = [pixel_values(item, 256, 256)]
        else:
            recording = Recording.open(item)
            values = [window for window, _ in zip(recording.windows(), range(20), strict=False)]
        if not all(np.isfinite(value).all() for value in values):
            raise WrongError("values that are not finite")

    return work


@click.command()
@options
def main(cases: int, seed: int, first: int) -> None:
    """Try mutated images and recordings."""
    report(fuzz(case, cases=cases, seed=seed, first=first))


if __name__ == "__main__":
    main()
