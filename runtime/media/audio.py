"""From a sound file to 16 kHz mono, as librosa and so Hugging Face's processor load one, in pieces of constant memory.

Channels are averaged, then resampled (soxr, HQ). A model hears 30 seconds at a time. Longer recordings are cut into
windows that follow each other without a gap or an overlap, each encoded on its own, as LiteRT-LM does
(runtime/executor/audio_litert_compiled_model_executor.cc, Encode).
"""

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemma_edge.runtime.media.errors import MediaError, MissingExtraError
from gemma_edge.runtime.media.item import MediaItem
from gemma_edge.runtime.media.mel import GEMMA3N, SAMPLE_RATE_HZ, FrontEnd

WINDOW_SAMPLES = 30 * SAMPLE_RATE_HZ
"""What the feature extractors of Gemma 3n and Gemma 4 take at most."""

# (what it is, where its mark stands, the mark)
_NOT_READ = (
    ("an MP4 file (m4a, mp4, mov: AAC sound)", 4, b"ftyp"),
    ("a WebM or Matroska file", 0, b"\x1a\x45\xdf\xa3"),
    ("a Windows Media file (wma, asf)", 0, b"\x30\x26\xb2\x75"),
    ("an AMR file", 0, b"#!AMR"),
    ("an AAC stream", 0, b"\xff\xf1"),
    ("an AAC stream", 0, b"\xff\xf9"),
    ("a Flash video", 0, b"FLV"),
)
_MOST_FRAMES = 1 << 40  # a year at any rate: above it, a header that was never completed
_BLOCK_FRAMES = 1 << 16
_SEARCHED_SAMPLES = 5 * SAMPLE_RATE_HZ  # at the end of a window, for a pause
_PAUSE_SAMPLES = SAMPLE_RATE_HZ // 5

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Recording:
    """A sound file whose header was read. frames: samples of one channel, at the file's own rate. front_end: of whoever
    hears it."""

    item: MediaItem
    rate_hz: int
    channels: int
    frames: int
    front_end: FrontEnd = GEMMA3N

    @classmethod
    def open(cls, item: MediaItem, front_end: FrontEnd = GEMMA3N) -> "Recording":
        """Raises MediaError: not a sound file, or one without sound."""
        with _sound_file(item) as sound:
            # FLAC that was written into a pipe has no length in its header.
            frames = sound.frames if 0 < sound.frames < _MOST_FRAMES else _counted(item)
            recording = cls(item, sound.samplerate, sound.channels, frames, front_end)
        if not recording.frames:
            raise MediaError(f"{item.name}: has no samples; give a recording with sound")
        if not front_end.frame_count(recording.samples):
            least = math.ceil(1000 * front_end.samples_of(1) / SAMPLE_RATE_HZ)
            raise MediaError(
                f"{item.name}: {1000 * recording.seconds:.0f} ms of sound, one frame takes {least}; "
                "give a longer recording"
            )
        return recording

    @property
    def seconds(self) -> float:
        return self.frames / self.rate_hz

    @property
    def samples(self) -> int:
        """Samples at 16 kHz."""
        return math.ceil(self.frames * SAMPLE_RATE_HZ / self.rate_hz)

    def blocks(self) -> Iterator[Samples]:
        """The recording at 16 kHz, mono, in pieces of any length. Raises MediaError: damaged, or not finite."""
        with _sound_file(self.item) as sound:
            resample = _resampler(self.rate_hz)
            position = 0
            while True:
                block = _read(sound, self.item)  # [n, channels]
                if not np.isfinite(block).all():
                    bad = position + int(np.argmin(np.isfinite(block).all(axis=1)))
                    raise MediaError(
                        f"{self.item.name}: the sample at {bad / self.rate_hz:.3f} s is not a finite number; "
                        "export the recording again"
                    )
                position += len(block)
                is_last = len(block) < _BLOCK_FRAMES
                yield resample(block.mean(axis=1), is_last)
                if is_last:
                    return

    def windows(self, samples: int = WINDOW_SAMPLES) -> Iterator[Samples]:
        """Pieces of `samples`, one after the other; the last is shorter, and left out if it has not one frame."""
        return self._cut(samples, lambda _window: samples)

    def spoken_windows(self, samples: int = WINDOW_SAMPLES) -> Iterator[Samples]:
        """As `windows`, but each ends in the quietest fifth of a second of its last five, so that no word is split."""
        return self._cut(samples, _quietest_place)

    def _cut(self, longest: int, place: Callable[[Samples], int]) -> Iterator[Samples]:
        """place: where to cut a piece of `longest` samples."""
        held: list[Samples] = []
        for block in self.blocks():
            held.append(block)
            while sum(map(len, held)) > longest:
                joined = np.concatenate(held)
                end = place(joined[:longest])
                yield joined[:end]
                held = [joined[end:]]
        rest = np.concatenate(held)
        if self.front_end.frame_count(len(rest)):
            yield rest


def _quietest_place(window: Samples) -> int:
    searched = min(_SEARCHED_SAMPLES, len(window) // 2)
    energy = np.concatenate([[0], np.cumsum(np.square(window[-searched:], dtype=np.float64))])
    pause = min(_PAUSE_SAMPLES, searched)
    quietest = int(np.argmin(energy[pause:] - energy[:-pause]))
    return len(window) - searched + quietest + pause // 2


def _resampler(rate_hz: int) -> Callable[[Samples, bool], Samples]:
    """A function of mono samples at `rate_hz` and whether they are the last."""
    if rate_hz == SAMPLE_RATE_HZ:
        return lambda samples, _is_last: samples
    try:
        import soxr
    except (ImportError, OSError) as error:
        raise MissingExtraError("soxr", error) from error
    stream = soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32", quality="HQ")
    return lambda samples, is_last: stream.resample_chunk(samples, last=is_last)


def _counted(item: MediaItem) -> int:
    """How many frames there are, by decoding them."""
    with _sound_file(item) as sound:
        return sum(iter(lambda: len(_read(sound, item)), 0))


@contextmanager
def _sound_file(item: MediaItem) -> Iterator[Any]:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: without libsndfile
        raise MissingExtraError("soundfile", error) from error

    class Stream(soundfile.SoundFile):  # type: ignore[misc]  # without types
        """Only read onwards. soundfile seeks after every read, which fails at the end of a file of unknown length."""

        def seekable(self) -> bool:
            return False

    with item.open() as file:
        try:
            sound = Stream(file)
        except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: it asks for a rate that raw samples lack
            raise MediaError(_not_opened(item, error)) from error
        with sound:
            yield sound


def _not_opened(item: MediaItem, error: Exception) -> str:
    """What the file is, as far as its first bytes say, and what to do."""
    with item.open() as file:
        start = file.read(16)
    found = next((name for name, place, mark in _NOT_READ if start[place : place + len(mark)] == mark), None)
    if found is None:
        return f"{item.name}: not a sound file that libsndfile knows ({_reason(error)}); give WAV, FLAC, MP3 or Ogg"
    return f"{item.name}: {found}, which is not read; convert it, for instance with: ffmpeg -i INPUT OUTPUT.wav"


def _read(sound: Any, item: MediaItem) -> Samples:
    try:
        block: Samples = sound.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)
    except RuntimeError as error:
        raise MediaError(f"{item.name}: cannot be decoded ({_reason(error)}); export the recording again") from error
    return block


def _reason(error: Exception) -> str:
    """libsndfile's own words: soundfile puts the file object before them."""
    return str(getattr(error, "error_string", error)).strip().rstrip(".")


def wav_bytes(samples: Samples) -> bytes:
    """A WAV file of 16 kHz mono samples, float32."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE_HZ, format="WAV", subtype="FLOAT")
    return file.getvalue()
