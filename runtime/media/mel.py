"""The log-mel spectrograms that Gemma 3n's and Gemma 4's audio encoders read, as Hugging Face computes them.

Step by step transformers' Gemma3nAudioFeatureExtractor and Gemma4AudioFeatureExtractor with their defaults, which are
those of google/gemma-3n and google/gemma-4: frames every 10 ms, a periodic Hann window, an FFT, 128 triangular bands
over magnitudes, and the logarithm.
"""

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE_HZ = 16_000
HOP_SAMPLES = 160
BANDS = 128

_SAMPLES_MULTIPLE = 128  # zeros are appended up to a multiple of it


@dataclass(frozen=True)
class FrontEnd:
    """How sound becomes frames.

    fft_samples: what a frame is padded to. pre_emphasis: what is taken off of the sample before, in HTK's way.
    floor: of magnitudes, below which they are cut, or, with adds_floor, which is added to all. zeros_before: the first
    sample. hears_padding: whether frames count that the zeros reach into which fill the last 128 samples.
    window_bits: of floats in which the window is computed, which shows in bands that are nearly silent.
    """

    frame_samples: int
    fft_samples: int
    lowest_hz: float
    highest_hz: float
    pre_emphasis: float
    floor: float
    adds_floor: bool
    zeros_before: int
    hears_padding: bool
    window_bits: int

    def frame_count(self, samples: int) -> int:
        """How many frames a recording of so many samples has; a frame takes one sample more than its length."""
        heard = -(-samples // _SAMPLES_MULTIPLE) * _SAMPLES_MULTIPLE if self.hears_padding else samples
        return max(0, (self.zeros_before + heard - self.frame_samples - 1) // HOP_SAMPLES + 1)

    def samples_of(self, frames: int) -> int:
        """Samples of a recording that has so many frames."""
        return self.frame_samples + 1 - self.zeros_before + (frames - 1) * HOP_SAMPLES

    def log_mel(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [n] at 16 kHz, -1 to 1 -> float32 [frame_count(n), 128]."""
        behind = -len(samples) % _SAMPLES_MULTIPLE
        padded = np.pad(samples.astype(np.float32, copy=False), (self.zeros_before, behind))
        count = self.frame_count(len(samples))
        if not count:
            return np.zeros((0, BANDS), np.float32)
        length = self.frame_samples
        windows = np.lib.stride_tricks.sliding_window_view(padded, length + 1)[::HOP_SAMPLES][:count]
        frames = windows[:, :-1]  # [frames, length]
        if self.pre_emphasis:
            first = windows[:, :1] * (1.0 - self.pre_emphasis)
            frames = np.concatenate([first, windows[:, 1:-1] - self.pre_emphasis * windows[:, :-2]], axis=1)
        magnitudes = np.abs(np.fft.rfft(frames * _hann_window(length, self.window_bits), n=self.fft_samples))
        energies = magnitudes @ _filters(self.fft_samples, self.lowest_hz, self.highest_hz)  # [frames, 128]
        mel = np.log(energies + self.floor if self.adds_floor else np.maximum(energies, self.floor))
        return mel.astype(np.float32)


GEMMA3N: Final = FrontEnd(
    512, 1024, 125.0, 7600.0, 0.97, 1e-5, adds_floor=False, zeros_before=0, hears_padding=True, window_bits=32
)
GEMMA4: Final = FrontEnd(
    320, 512, 0.0, 8000.0, 0.0, 1e-3, adds_floor=True, zeros_before=160, hears_padding=False, window_bits=64
)


@cache
def _hann_window(length: int, bits: int) -> NDArray[np.float32]:
    turns = np.arange(length, dtype=f"f{bits // 8}") / length
    window: NDArray[np.float32] = (0.5 * (1 - np.cos(2 * np.pi * turns))).astype(np.float32)
    return window


@cache
def _filters(fft_samples: int, lowest_hz: float, highest_hz: float) -> NDArray[np.float64]:
    """[fft / 2 + 1, 128]: how much each frequency counts in each band. Triangles, of equal width in mel (HTK's)."""
    frequencies = np.arange(fft_samples // 2 + 1) * (SAMPLE_RATE_HZ / fft_samples)
    lowest, highest = (2595 * np.log10(1 + hz / 700) for hz in (lowest_hz, highest_hz))
    corners = 700 * (10 ** (np.linspace(lowest, highest, BANDS + 2) / 2595) - 1)  # in Hz: left, peak, right of each
    widths = np.diff(corners)
    rising = (frequencies[:, None] - corners[:-2]) / widths[:-1]
    falling = (corners[2:] - frequencies[:, None]) / widths[1:]
    filters: NDArray[np.float64] = np.maximum(0, np.minimum(rising, falling))
    return filters
