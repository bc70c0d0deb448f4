"""Recordings: to 16 kHz mono as librosa's defaults do it, in windows, and what is refused."""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from numpy.typing import NDArray

from gemma_edge.runtime.media.audio import WINDOW_SAMPLES, Recording, wav_bytes
from gemma_edge.runtime.media.errors import MediaError
from gemma_edge.runtime.media.item import MediaItem, MediaKind
from tests.media_files import speech

Samples = NDArray[np.float32]


def item(data: Path | bytes) -> MediaItem:
    return MediaItem.of(MediaKind.AUDIO, data)


def encoded(samples: NDArray[Any], rate_hz: int, kind: str = "WAV", subtype: str | None = "FLOAT") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format=kind, subtype=subtype)
    return file.getvalue()


def loaded(data: Path | bytes) -> Samples:
    return np.concatenate(list(Recording.open(item(data)).blocks()))


def tone(rate_hz: int, seconds: float, hz: float = 440.0) -> Samples:
    turns = hz * np.arange(int(rate_hz * seconds)) / rate_hz
    return np.asarray(np.sin(2 * np.pi * turns) / 2, np.float32)


# ---------------------------------------------------------------- right


def test_speech_at_16_khz_is_taken_as_it_is() -> None:
    samples, rate_hz = soundfile.read(speech(), dtype="float32")
    recording = Recording.open(item(speech()))
    assert (recording.rate_hz, recording.channels, recording.frames) == (rate_hz, 1, len(samples))
    assert np.array_equal(loaded(speech()), samples)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_other_rates_are_resampled_as_one_piece(rate_hz: int) -> None:
    samples, _ = soundfile.read(speech(), dtype="float32")
    there = soxr.resample(samples, 16_000, rate_hz)
    found = loaded(encoded(there, rate_hz))
    wanted = soxr.resample(there, rate_hz, 16_000, quality="HQ")
    assert abs(len(found) - len(wanted)) <= 1
    assert abs(Recording.open(item(encoded(there, rate_hz))).samples - len(wanted)) <= 1
    count = min(len(found), len(wanted))
    assert float(np.abs(found[:count] - wanted[:count]).max()) <= 1e-5


def test_channels_are_averaged() -> None:
    left, right = tone(16_000, 0.5), tone(16_000, 0.5, 880)
    assert np.allclose(loaded(encoded(np.stack([left, right], 1), 16_000)), (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize(("kind", "subtype"), [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")])
def test_formats(kind: str, subtype: str) -> None:
    samples = tone(16_000, 1.0)
    found = loaded(encoded(samples, 16_000, kind, subtype))
    middle = slice(4000, 12_000)  # codecs add silence before and after
    assert float(np.abs(np.abs(np.fft.rfft(found[middle])) - np.abs(np.fft.rfft(samples[middle]))).max()) < 200
    assert abs(float(np.sqrt(np.mean(found[middle] ** 2))) - 0.5 / np.sqrt(2)) < 0.02


def test_silence_is_sound() -> None:
    assert not loaded(encoded(np.zeros(8000, np.float32), 16_000)).any()


def test_an_hour_is_read_in_windows() -> None:
    hour = encoded(np.zeros(3600 * 8000, np.int16), 8000, "FLAC", "PCM_16")  # some hundred kB
    recording = Recording.open(item(hour))
    assert recording.seconds == 3600
    lengths = [len(window) for window in recording.windows()]
    assert lengths == [WINDOW_SAMPLES] * 120


def test_windows_follow_each_other_without_a_gap() -> None:
    samples = tone(16_000, 5.02)
    recording = Recording.open(item(encoded(samples, 16_000)))
    windows = list(recording.windows(32_000))
    assert [len(window) for window in windows] == [32_000, 32_000, 16_320]
    assert np.array_equal(np.concatenate(windows), samples)
    assert [len(window) for window in recording.windows(80_000)] == [80_000]  # 20 ms more: not one frame


def test_spoken_windows_end_in_pauses() -> None:
    samples = tone(16_000, 80.0)
    pauses = [27.0, 53.5]
    for second in pauses:
        samples[int(16_000 * (second - 0.2)) : int(16_000 * (second + 0.2))] = 0
    windows = list(Recording.open(item(encoded(samples, 16_000))).spoken_windows())
    ends = np.cumsum([len(window) for window in windows]) / 16_000
    assert np.array_equal(np.concatenate(windows), samples)
    assert len(windows) == 3
    assert np.abs(ends[:2] - pauses).max() <= 0.2


def test_samples_become_a_file() -> None:
    samples = tone(16_000, 0.1)
    assert np.array_equal(loaded(wav_bytes(samples)), samples)


# ---------------------------------------------------------------- refused


def broken(value: float) -> bytes:
    samples = tone(16_000, 5.0)
    samples[70_000] = value
    return encoded(samples, 16_000)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the recording: has no bytes; give a file with content"),
        (
            encoded(np.zeros(0, np.float32), 16_000),
            "the recording: has no samples; give a recording with sound",
        ),
        (
            encoded(np.zeros(160, np.float32), 16_000),
            "the recording: 10 ms of sound, one frame takes 33; give a longer recording",
        ),
        (
            broken(float("nan")),
            "the recording: the sample at 4.375 s is not a finite number; export the recording again",
        ),
        (
            broken(float("inf")),
            "the recording: the sample at 4.375 s is not a finite number; export the recording again",
        ),
    ],
    ids=["empty", "zero length", "too short", "nan", "infinite"],
)
def test_what_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(MediaError) as caught:
        loaded(data)
    assert str(caught.value) == message


@pytest.mark.parametrize("data", [b"no sound at all", b"RIFF\x00\x00\x00\x00WAVE"])
def test_what_is_no_sound_file(data: bytes) -> None:
    with pytest.raises(MediaError) as caught:
        loaded(data)
    assert str(caught.value).startswith("the recording: not a sound file that libsndfile knows (")
    assert str(caught.value).endswith("); give WAV, FLAC, MP3 or Ogg")
    assert "\n" not in str(caught.value)


def test_a_damaged_file() -> None:
    noise = np.random.default_rng(0).standard_normal(64_000).astype(np.float32) / 8
    whole = bytearray(encoded(noise, 16_000, "FLAC", "PCM_16"))
    whole[len(whole) // 2 : len(whole) // 2 + 4000] = bytes(4000)
    with pytest.raises(MediaError) as caught:
        loaded(bytes(whole))
    assert str(caught.value).startswith("the recording: cannot be decoded (")
    assert str(caught.value).endswith("); export the recording again")


@pytest.mark.parametrize("library", ["soundfile", "soxr"])
def test_without_a_library(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(tone(8000, 0.5), 8000)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MediaError, match=rf"^{library} cannot be loaded \(.*\); pip install 'gemma-edge\[encoders\]'$"):
        loaded(data)


def without_length(data: bytes) -> bytes:
    """The FLAC file as an encoder writes it into a pipe: STREAMINFO's count of samples is 0."""
    changed = bytearray(data)
    changed[21] &= 0xF0
    changed[22:26] = bytes(4)
    return bytes(changed)


@pytest.mark.parametrize(
    ("rate_hz", "seconds", "channels"), [(16_000, 1.0, 1), (44_100, 7.3, 2), (8_000, 65536 / 8000, 1)]
)
def test_flac_of_unknown_length_is_the_same_recording(rate_hz: int, seconds: float, channels: int) -> None:
    samples = np.repeat(tone(rate_hz, seconds)[:, None], channels, axis=1)
    whole = encoded(samples, rate_hz, "FLAC", "PCM_16")
    known, unknown = Recording.open(item(whole)), Recording.open(item(without_length(whole)))
    assert (unknown.frames, unknown.rate_hz, unknown.channels) == (known.frames, rate_hz, channels)
    assert np.array_equal(loaded(without_length(whole)), loaded(whole))


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"\x00\x00\x00\x20ftypM4A \x00\x00", "an MP4 file (m4a, mp4, mov: AAC sound)"),
        (b"\x00\x00\x00\x18ftypqt  \x00\x00", "an MP4 file (m4a, mp4, mov: AAC sound)"),
        (b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\x01", "a WebM or Matroska file"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a Windows Media file (wma, asf)"),
        (b"#!AMR\n\x04", "an AMR file"),
        (b"\xff\xf1\x50\x80\x01\x3f\xfc", "an AAC stream"),
    ],
)
def test_formats_that_are_refused_by_name(data: bytes, found: str) -> None:
    with pytest.raises(MediaError) as caught:
        Recording.open(item(data + bytes(200)))
    assert str(caught.value) == (
        f"the recording: {found}, which is not read; convert it, for instance with: ffmpeg -i INPUT OUTPUT.wav"
    )
