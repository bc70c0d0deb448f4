"""How long the encoders of a model take, and how much memory, each alone in a process of its own."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.executors.litert.partitions import Partitions
from gemma_edge.runtime.executors.open import open_encoders, partitions_of
from gemma_edge.runtime.formats.litertlm import ModelType
from gemma_edge.runtime.formats.model import Model, open_model
from gemma_edge.runtime.media.encoders import Encoders
from gemma_edge.runtime.media.mel import BANDS
from gemma_edge.runtime.memory.reading import PeakSampler, process_tree
from gemma_edge.runtime.packing.child import python_command

_SECTIONS = {"vision": ModelType.VISION_ENCODER, "audio": ModelType.AUDIO_ENCODER}


class EncoderBenchmarkError(GemmaEdgeError):
    """The process that runs an encoder failed."""


@dataclass(frozen=True)
class EncoderMeasurement:
    """Of one image or one window. Bytes are peaks of the whole process, Python included, without a decoder.

    load_s: what the first takes more than the second, with packed weights in the cache. encode_s: the second.
    partitions: how XNNPACK divides it; None for ONNX.
    """

    load_s: float
    encode_s: float
    anon_bytes: int
    file_bytes: int
    partitions: Partitions | None


def measure_encoders(model_path: str, threads: int, cache_dir: Path | None) -> dict[str, EncoderMeasurement]:
    """By "vision" and "audio", those that the model has. Raises EncoderBenchmarkError with the process's own error."""
    model = open_model(Path(model_path))
    encoders = open_encoders(model, threads, threads, cache_dir)
    return {name: _measure(model, name, threads, cache_dir) for name in _SECTIONS if getattr(encoders, name)}


def _measure(model: Model, name: str, threads: int, cache_dir: Path | None) -> EncoderMeasurement:
    signatures = partitions_of(model, _SECTIONS[name], threads, cache_dir)
    divided = next(iter(signatures.values())) if signatures else None
    request = [str(model.path), name, str(threads), "" if cache_dir is None else str(cache_dir)]
    command = python_command("gemma_edge.runtime.measure.encoder_bench", *request)
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child,
        PeakSampler(lambda: process_tree(child.pid)) as sampler,
    ):
        output, errors = child.communicate()
    if child.returncode:
        reason = errors.strip().rpartition("\n")[2] or f"exit status {child.returncode}"
        raise EncoderBenchmarkError(f"the {name} encoder's process failed: {reason.removeprefix('error: ')}")
    first_s, second_s = json.loads(output)
    return EncoderMeasurement(first_s - second_s, second_s, sampler.peak.anon_bytes, sampler.peak.file_bytes, divided)


def _encode(encoders: Encoders, name: str) -> float:
    """Seconds of encoding black pixels or silence."""
    started = time.perf_counter()
    if name == "vision":
        assert encoders.vision is not None
        encoders.encode_image(encoders.vision.blank())
    else:
        assert encoders.audio is not None
        encoders.encode_audio(np.zeros((encoders.audio.inputs, BANDS), np.float32))
    return time.perf_counter() - started


def _child(path: str, name: str, threads: str, cache_dir: str) -> None:
    """Encodes twice and writes the two times to standard output."""
    try:
        folder = Path(cache_dir) if cache_dir else None
        encoders = open_encoders(open_model(Path(path)), int(threads), int(threads), folder)
        times_s = [_encode(encoders, name) for _ in range(2)]
        encoders.release()
    except GemmaEdgeError as error:
        sys.exit(f"error: {error}")
    json.dump(times_s, sys.stdout)


if __name__ == "__main__":
    _child(*sys.argv[1:])
