"""The mel front end against Hugging Face's feature extractor, on recorded speech and on what is unusual."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from gemma_edge.runtime.media.mel import GEMMA3N
from tests.media_files import speech

Samples = NDArray[np.float32]


def expected(samples: Samples) -> NDArray[np.float32]:
    """What the extractor makes of one recording by itself."""
    from transformers import Gemma3nAudioFeatureExtractor

    made = Gemma3nAudioFeatureExtractor()(samples, return_tensors="np")
    assert made["input_features_mask"].all()
    mel: NDArray[np.float32] = made["input_features"][0]
    return mel


def spoken() -> Samples:
    return np.concatenate([soundfile.read(speech(index), dtype="float32")[0] for index in (0, 1)])


CASES: Mapping[str, Callable[[Samples], Samples]] = {
    "whole": lambda samples: samples,
    "cut": lambda samples: samples[1234:51_713],
    "short": lambda samples: samples[20_000:20_641],
    "full window": lambda samples: np.resize(samples, 480_000),
    "quiet": lambda samples: samples * np.float32(1e-4),
    "loud": lambda samples: np.clip(samples * 20, -1, 1),
}


@pytest.mark.parametrize("name", CASES)
def test_speech_gives_hugging_faces_spectrogram(name: str) -> None:
    samples = CASES[name](spoken())
    mel = GEMMA3N.log_mel(samples)
    wanted = expected(samples)
    assert mel.shape == wanted.shape == (GEMMA3N.frame_count(len(samples)), 128)
    assert mel.dtype == np.float32
    assert float(np.abs(mel - wanted).max()) <= 1e-5


def test_silence_and_noise_too() -> None:
    noise = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    for samples in (np.zeros(16_000, np.float32), noise, noise * np.float32(1e-6)):
        assert float(np.abs(GEMMA3N.log_mel(samples) - expected(samples)).max()) <= 1e-5


@pytest.mark.parametrize(
    ("samples", "frames"), [(0, 0), (1, 0), (512, 0), (513, 1), (640, 1), (641, 2), (480_000, 2997)]
)
def test_the_frames_of_a_recording(samples: int, frames: int) -> None:
    assert GEMMA3N.frame_count(samples) == frames
    assert GEMMA3N.log_mel(np.zeros(samples, np.float32)).shape == (frames, 128)
