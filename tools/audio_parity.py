"""Compare the audio encoder of converted models with transformers', at any size.

    python -m tools.audio_parity CHECKPOINT MODEL... [--seconds 30,7.3]

MODEL is a bundle or an ONNX directory that was converted from CHECKPOINT with audio. transformers runs once, in
float32, in a process of its own: for the official size it takes 6 GB.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from gemma_edge.runtime.executors.litert.encoders import LitertEncoders
from gemma_edge.runtime.executors.litert.partitions import partitions
from gemma_edge.runtime.executors.litert.sections import section_range
from gemma_edge.runtime.executors.onnx.encoders import OnnxEncoders
from gemma_edge.runtime.formats.litertlm import Bundle, ModelType
from gemma_edge.runtime.formats.onnx_dir import OnnxDirectory
from gemma_edge.runtime.media.encoders import Encoders

FRAMES_PER_SECOND = 100


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("models", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--seconds", default="29.97,7.3", help="Lengths of the clips.")
@click.option("--threads", default=2)
@click.option("--oracle", is_flag=True, hidden=True)
def main(checkpoint: Path, models: tuple[Path, ...], seconds: str, threads: int, oracle: bool) -> None:
    """Print the errors and times of each."""
    lengths = [round(float(text) * FRAMES_PER_SECOND) for text in seconds.split(",")]
    if oracle:
        _write_expected(checkpoint, lengths, models[0])
        return
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "tools.audio_parity", str(checkpoint), directory, "--seconds", seconds]
        subprocess.run([*command, "--oracle"], check=True)
        for model in models:
            click.echo(f"{model}")
            _compare(model, Path(directory), lengths, threads)


def _write_expected(checkpoint: Path, lengths: list[int], directory: Path) -> None:
    from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
    from tools.audio_oracle import AudioOracle, loud_and_quiet, valid_frames

    oracle = AudioOracle.of_checkpoint(Checkpoint.open(checkpoint))
    for frames in lengths:
        mel = loud_and_quiet(1, frames, oracle.encoder.config.input_feat_size, seed=frames)
        np.save(directory / f"mel_{frames}.npy", mel[0])
        np.save(directory / f"expected_{frames}.npy", oracle.embed(mel, valid_frames(frames, frames))[0])


def _compare(model: Path, directory: Path, lengths: list[int], threads: int) -> None:
    with tempfile.TemporaryDirectory() as cache:
        encoders: Encoders
        if model.is_dir():
            encoders = OnnxEncoders(OnnxDirectory.open(model), threads, threads)
        else:
            bundle = Bundle.open(model)
            encoders = LitertEncoders(bundle, threads, threads, Path(cache))
            found = partitions(section_range(bundle, ModelType.AUDIO_ENCODER), threads, None)
            click.echo(f"  XNNPACK partitions {[parts.count for parts in found.values()]}")
        for frames in lengths:
            mel, expected = (np.load(directory / f"{name}_{frames}.npy") for name in ("mel", "expected"))
            encoders.encode_audio(mel)  # loads
            started = time.monotonic()
            rows = encoders.encode_audio(mel)
            elapsed = time.monotonic() - started
            error = np.linalg.norm(rows - expected) / np.linalg.norm(expected)
            click.echo(f"  {frames:5} frames  relative error {error:.2e}  {elapsed:.2f} s")
        encoders.release()


if __name__ == "__main__":
    main()
