"""The common jobs with images and recordings, worded as Google documents them.

Prompts for speech: ai.google.dev/gemma/docs/capabilities/audio. Images stand before the text and recordings after it,
as Google's model cards advise. Every reply is the most likely one, piece by piece as it is written.
"""

import os
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Final, TypeAlias

from gemma_edge.runtime.chat.messages import AudioBytes, Contents, ImageBytes, ImageFile
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.litert_lm_engine import LitertLmEngine
from gemma_edge.runtime.media.audio import WINDOW_SAMPLES, Recording, wav_bytes
from gemma_edge.runtime.media.item import MediaItem, MediaKind
from gemma_edge.runtime.text.sampler import SamplerConfig

AnyEngine: TypeAlias = Engine | LitertLmEngine
Media: TypeAlias = str | os.PathLike[str] | bytes
"""The path of a file, or the bytes of one."""

LANGUAGES: Final[Mapping[str, str]] = {
    "ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek",
    "en": "English", "es": "Spanish", "et": "Estonian", "fa": "Persian", "fi": "Finnish", "fr": "French",
    "he": "Hebrew", "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian", "id": "Indonesian", "it": "Italian",
    "ja": "Japanese", "ko": "Korean", "lt": "Lithuanian", "lv": "Latvian", "ms": "Malay", "nl": "Dutch",
    "no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sk": "Slovak",
    "sl": "Slovenian", "sv": "Swedish", "sw": "Swahili", "ta": "Tamil", "te": "Telugu", "th": "Thai", "tr": "Turkish",
    "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
"""By ISO 639-1 code, since programs name languages so and Google's prompts want names."""

_AS_HEARD = (
    "Follow these specific instructions for formatting the answer:\n"
    "* Only output the transcription, with no newlines.\n"
    "* When transcribing numbers, write the digits, i.e. write 1.7 and not one point seven, and write 3 instead of "
    "three."
)
_DESCRIBE = "Describe this image in detail."


def transcribe(engine: AnyEngine, audio: Media, language: str | None = None) -> Iterator[str]:
    """What is said in a recording of any length, piece by piece.

    A longer one is heard in windows of 25 to 30 seconds, cut in the quietest place of the last five. Each is a prompt
    of its own, so memory does not grow with the recording, and a line of the answer. language: in English, "German";
    None where it is not known.

    Raises MediaError: the recording cannot be read, or the model has no audio encoder.
    """
    return _listen(engine, audio, transcription_prompt(language))


def transcription_prompt(language: str | None = None) -> str:
    """What `transcribe` asks with each window."""
    spoken = "in its original language" if language is None else f"in {language} into {language} text"
    return f"Transcribe the following speech segment {spoken}. {_AS_HEARD}"


def transcribe_and_translate(
    engine: AnyEngine, audio: Media, target_language: str, language: str | None = None
) -> Iterator[str]:
    """As `transcribe`, and then the same in another language.

    Google's prompt asks for both: the transcription, a new line, "French: " and the translation.
    """
    return _listen(engine, audio, translation_prompt(target_language, language))


def translation_prompt(target_language: str, language: str | None = None) -> str:
    """What `transcribe_and_translate` asks with each window."""
    source = language or "its original language"
    return (
        f"Transcribe the following speech segment in {source}, then translate it into {target_language}.\n"
        f"When formatting the answer, first output the transcription in {source}, then one newline, then output the "
        f"string '{target_language}: ', then the translation in {target_language}."
    )


def describe(engine: AnyEngine, image: Media, prompt: str = _DESCRIBE) -> Iterator[str]:
    """What is in an image, piece by piece. Raises MediaError as `transcribe` does."""
    part = ImageBytes(image) if isinstance(image, bytes) else ImageFile(os.fspath(Path(image).absolute()))
    return _answer(engine, Contents.of(part, prompt))


def _listen(engine: AnyEngine, audio: Media, prompt: str) -> Iterator[str]:
    item = MediaItem.of(MediaKind.AUDIO, audio if isinstance(audio, bytes) else Path(audio))
    if isinstance(engine, Engine):
        return _windows(engine, engine.media.recording(item), prompt, engine.media.audio_window_samples)
    return _windows(engine, Recording.open(item), prompt, WINDOW_SAMPLES)


def _windows(engine: AnyEngine, recording: Recording, prompt: str, longest: int) -> Generator[str, None, None]:
    for index, window in enumerate(recording.spoken_windows(longest)):
        if index:
            yield "\n"
        yield from _answer(engine, Contents.of(prompt, AudioBytes(wav_bytes(window))))


def _answer(engine: AnyEngine, contents: Contents) -> Generator[str, None, None]:
    with engine.create_conversation(sampler_config=SamplerConfig(top_k=1)) as conversation:
        for message in conversation.send_message_async(contents):
            yield str(message)
