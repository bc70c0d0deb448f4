"""Compare the vision encoder of converted models with timm's, at any size.

    python -m tools.vision_parity CHECKPOINT MODEL... [--images 2]

MODEL is a bundle or an ONNX directory that was converted from CHECKPOINT with vision. timm runs once, in float32, in a
process of its own: for the official size it takes 4 GB.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from gemma_edge.profiles.sizes import format_bytes
from gemma_edge.runtime.executors.litert.encoders import LitertEncoders
from gemma_edge.runtime.executors.litert.partitions import partitions
from gemma_edge.runtime.executors.litert.sections import section_range
from gemma_edge.runtime.executors.onnx.encoders import OnnxEncoders
from gemma_edge.runtime.formats.litertlm import Bundle, ModelType
from gemma_edge.runtime.formats.onnx_dir import OnnxDirectory
from gemma_edge.runtime.media.encoders import Encoders
from gemma_edge.runtime.memory.reading import PeakSampler


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("models", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--images", default=1, help="How many random images.")
@click.option("--threads", default=2)
@click.option("--oracle", is_flag=True, hidden=True)
def main(checkpoint: Path, models: tuple[Path, ...], images: int, threads: int, oracle: bool) -> None:
    """Print errors, times and memory of each."""
    if oracle:
        _write_expected(checkpoint, images, models[0])
        return
    with tempfile.TemporaryDirectory() as directory:
        options = ("--images", str(images), "--oracle")
        subprocess.run([sys.executable, "-m", "tools.vision_parity", checkpoint, directory, *options], check=True)
        for model in models:
            click.echo(f"{model}")
            _compare(model, Path(directory), images, threads)


def _write_expected(checkpoint: Path, count: int, directory: Path) -> None:
    from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
    from gemma_edge.converter.checkpoint.processor import media_settings
    from tools.vision_oracle import VisionOracle, random_images

    oracle = VisionOracle.of_checkpoint(Checkpoint.open(checkpoint))
    pixels = random_images(count, media_settings(checkpoint).pixels)
    np.save(directory / "images.npy", pixels.transpose(0, 2, 3, 1))
    np.save(directory / "expected.npy", np.concatenate([oracle.embed(image[None]) for image in pixels]))


def _compare(model: Path, directory: Path, images: int, threads: int) -> None:
    if model.is_file():
        found = partitions(section_range(Bundle.open(model), ModelType.VISION_ENCODER), threads, None)
        click.echo(f"  XNNPACK partitions {[parts.count for parts in found.values()]}")
    pixels, expected = (np.load(directory / f"{name}.npy") for name in ("images", "expected"))
    with PeakSampler() as sampler, tempfile.TemporaryDirectory() as cache:
        encoders: Encoders
        if model.is_dir():
            encoders = OnnxEncoders(OnnxDirectory.open(model), threads, threads)
        else:
            encoders = LitertEncoders(Bundle.open(model), threads, threads, Path(cache))
        encoders.encode_image(pixels[:1])  # loads
        for i in range(images):
            started = time.monotonic()
            rows, _ = encoders.encode_image(pixels[i : i + 1])
            elapsed = time.monotonic() - started
            error = np.linalg.norm(rows - expected[i]) / np.linalg.norm(expected[i])
            click.echo(f"  image {i}  relative error {error:.2e}  {elapsed:.2f} s")
        encoders.release()
    click.echo(f"  peak anonymous memory {format_bytes(sampler.peak.hard_bytes)}")


if __name__ == "__main__":
    main()
