"""The encoders of images and sound as they run, against the checkpoint's in float32 numpy.

What is encoded is random and the same every time: an image of soft shapes and a clip of rising and falling noise. That
is neither a photograph nor speech, but rounding weights costs about the same on both, and a mistake is seen on any.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.checkpoint.processor import image_pixels
from gemma_edge.converter.evaluate.encoders import run_graph
from gemma_edge.converter.models import audio, vision
from gemma_edge.converter.models.encoders import Modality, Tower, towers
from gemma_edge.converter.verify.find.faults import Finding
from gemma_edge.runtime.executors.litert.encoders import LitertEncoders
from gemma_edge.runtime.formats.litertlm import Bundle
from gemma_edge.runtime.formats.onnx_dir import OnnxDirectory
from gemma_edge.runtime.media.encoders import Encoders

Float32 = NDArray[np.float32]

CLIP_EMBEDDINGS: Final = 24  # of at most 188: 4 seconds say as much as 30
_LARGEST_ERROR: Final = 0.5
"""Relative. What an int8 encoder rounds comes to 0.06 at most, on random weights; two unlike encoders differ by 1.4."""


@dataclass(frozen=True)
class EncoderScore:
    """One encoder. relative_error: |found - expected| / |expected| of all embeddings; cosine: the worst embedding's."""

    modality: Modality
    embeddings: int
    relative_error: float
    cosine: float


def encoder_findings(scores: Sequence[EncoderScore]) -> Iterator[Finding]:
    """Encoders that are not the checkpoint's."""
    for score in scores:
        if not score.relative_error <= _LARGEST_ERROR:  # which NaN is not
            yield Finding(
                f"wrong {score.modality} encoder",
                "what the bundle makes of images or sound is not what the checkpoint makes of them",
                f"over {score.embeddings} embeddings the relative error is {score.relative_error:.2g}, "
                f"the worst cosine {score.cosine:.3f}",
            )


def score_encoders(
    checkpoint: Checkpoint, bundle: Bundle | OnnxDirectory, threads: int, cache_dir: Path | None
) -> Iterator[EncoderScore]:
    """Of each encoder that the bundle has. One is loaded at a time."""
    encoders = _encoders(bundle, threads, cache_dir)
    present = {Modality.VISION: encoders.vision is not None, Modality.AUDIO: encoders.audio is not None}
    if not any(present.values()):
        return
    for tower in towers(checkpoint.config, image_pixels(checkpoint.side_path)):
        if present[tower.modality]:
            expected, found = _vision(tower, checkpoint, encoders) or _audio(tower, checkpoint, encoders)
            encoders.release()
            yield _score(tower.modality, expected, found)


def _score(modality: Modality, expected: Float32, found: Float32) -> EncoderScore:
    error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
    cosine = float(((expected * found).sum(axis=1) / lengths).min())
    return EncoderScore(modality, len(expected), error, cosine)


def _vision(tower: Tower, checkpoint: Checkpoint, encoders: Encoders) -> tuple[Float32, Float32] | None:
    """Expected and found embeddings of an image, [tokens, text width]."""
    if not isinstance(tower.config, vision.Config):
        return None
    pixels = _soft_shapes(tower.config.image_size)
    [graph] = tower.graphs(is_onnx=True)
    [expected] = run_graph(graph, checkpoint, {"pixel_values": pixels.transpose(0, 3, 1, 2)}).values()
    return expected[0], encoders.encode_image(pixels)[0]


def _audio(tower: Tower, checkpoint: Checkpoint, encoders: Encoders) -> tuple[Float32, Float32]:
    """Expected and found embeddings of a clip, [tokens, text width]; what only pads is left out."""
    assert isinstance(tower.config, audio.Config)
    count = min(CLIP_EMBEDDINGS, tower.config.embeddings)
    short = Tower.of(replace(tower.config, embeddings=count))
    assert isinstance(short.config, audio.Config)
    mel = _rising_and_falling(short.config.frames, short.config.mel_bins)
    encoder, adapter, _ = short.graphs(is_onnx=False)
    inputs = {"src_inputs": mel[None], "mask": np.ones((1, len(mel)), np.bool_)}
    [expected] = run_graph(adapter, checkpoint, run_graph(encoder, checkpoint, inputs)).values()
    return expected[0], encoders.encode_audio(mel)[:count]


def _soft_shapes(size: int) -> Float32:
    """A picture of waves of all lengths, [1, size, size, 3] in [0, 1]."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size
    picture = np.zeros((size, size, 3))
    for wave in range(1, 33):
        down, right, phase = rng.uniform(-wave, wave), rng.uniform(-wave, wave), rng.uniform(0, 2 * np.pi)
        picture += np.sin(2 * np.pi * (down * y + right * x) + phase)[..., None] * rng.standard_normal(3) / wave**0.5
    picture = (picture - picture.min()) / (picture.max() - picture.min())
    image: Float32 = picture[None].astype(np.float32)
    return image


def _rising_and_falling(frames: int, bins: int) -> Float32:
    """Mel frames as sounds have them, [frames, bins]: more energy low, and loudness that comes and goes."""
    noise = np.random.default_rng(0).standard_normal((frames, bins), np.float32)
    loudness = 2 * np.sin(np.arange(frames, dtype=np.float32) / 9)[:, None]
    mel: Float32 = noise + np.linspace(-2, -7, bins, dtype=np.float32) + loudness
    return mel


def _encoders(bundle: Bundle | OnnxDirectory, threads: int, cache_dir: Path | None) -> Encoders:
    if isinstance(bundle, Bundle):
        return LitertEncoders(bundle, threads, threads, cache_dir)
    from gemma_edge.runtime.executors.onnx.encoders import OnnxEncoders  # an extra of its own

    return OnnxEncoders(bundle, threads, threads)
