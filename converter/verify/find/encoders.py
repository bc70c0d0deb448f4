"""The encoders of images and audio as they run, against the checkpoint's in float32 numpy.

What is encoded is random and the same every time: an image of soft shapes and a clip of rising and falling noise. That
is neither a photograph nor speech, but rounding weights costs about the same on both, and a mistake is seen on any.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.checkpoint.processor import media_settings
from gemma_edge.converter.evaluate.encoders import run_graph
from gemma_edge.converter.models.encoders import Encoder, Modality
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.verify.find.faults import Finding
from gemma_edge.runtime.executors.open import open_encoders
from gemma_edge.runtime.formats import model as formats
from gemma_edge.runtime.media.encoders import Encoders, PatchesSize

Float32 = NDArray[np.float32]

CLIP_EMBEDDINGS: Final = 24  # of at most 188: 4 seconds say as much as 30
_SIDE: Final = 8  # embeddings of an image in patches, down and across: 64 say as much as 280
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
                "what the bundle makes of images or audio is not what the checkpoint makes of them",
                f"over {score.embeddings} embeddings the relative error is {score.relative_error:.2g}, "
                f"the worst cosine {score.cosine:.3f}",
            )


def score_encoders(
    checkpoint: Checkpoint, bundle: formats.Model, threads: int, cache_dir: Path | None
) -> Iterator[EncoderScore]:
    """Of each encoder that the bundle has. One is loaded at a time."""
    running = open_encoders(bundle, threads, threads, cache_dir)
    present = {Modality.VISION: running.vision is not None, Modality.AUDIO: running.audio is not None}
    if not any(present.values()):
        return
    for encoder in Model.of_checkpoint(checkpoint.config, media_settings(checkpoint.side_path)).encoders:
        if present[encoder.modality]:
            compare = _vision if encoder.modality is Modality.VISION else _audio
            expected, found = compare(encoder, checkpoint, running)
            running.release()
            yield _score(encoder.modality, expected, found)


def _score(modality: Modality, expected: Float32, found: Float32) -> EncoderScore:
    error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
    cosine = float(((expected * found).sum(axis=1) / lengths).min())
    return EncoderScore(modality, len(expected), error, cosine)


def _vision(encoder: Encoder, checkpoint: Checkpoint, running: Encoders) -> tuple[Float32, Float32]:
    """Expected and found embeddings of an image, [tokens, text width]."""
    [graph] = encoder.graphs(in_one=True)
    if isinstance(running.vision, PatchesSize):
        grid = running.vision.grid
        cut = grid.cut(_soft_shapes(_SIDE * grid.pool * grid.side)[0])
        inputs = {"pixel_values": cut.values[None], "pixel_position_ids": cut.positions[None]}
        return run_graph(graph, checkpoint, inputs)["image_features"][0], running.encode_image(cut)[0]
    pixels = _soft_shapes(encoder.input_shape[1])
    [expected] = run_graph(graph, checkpoint, {"pixel_values": pixels.transpose(0, 3, 1, 2)}).values()
    return expected[0], running.encode_image(pixels)[0]


def _audio(encoder: Encoder, checkpoint: Checkpoint, running: Encoders) -> tuple[Float32, Float32]:
    """Expected and found embeddings of a clip, [tokens, text width]; what only pads is left out."""
    short = encoder.shortened(CLIP_EMBEDDINGS)
    mel = _rising_and_falling(*short.input_shape)
    body, adapter, _ = short.graphs(in_one=False)
    inputs = {"src_inputs": mel[None], "mask": np.ones((1, len(mel)), np.bool_)}
    [expected] = run_graph(adapter, checkpoint, run_graph(body, checkpoint, inputs)).values()
    return expected[0], running.encode_audio(mel)[: len(expected[0])]


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
