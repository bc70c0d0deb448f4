"""Chat and recordings inside a phone's budget."""

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.services.chats import conversation_of, sending
from gemma_edge.runtime.services.errors import ServiceError, known
from gemma_edge.runtime.services.request import GenerationConfig
from gemma_edge.runtime.tasks.media import LANGUAGES, Media, transcribe, transcribe_and_translate

TASKS = ("transcribe", "translate")


class MobileService:
    """An engine that keeps a device's budget, with the two jobs of the documents' phone service.

    Args:
        bundle: as `Engine` takes it.
        profile: the device; a bundle that does not fit is refused.
        engine: what else `Engine` takes.

    Raises what `Engine` raises.
    """

    def __init__(self, bundle: str | os.PathLike[str], profile: str = "phone-2gb", **engine: Any) -> None:
        self.engine = Engine(os.fspath(bundle), profile=profile, **engine)

    def mobile_chat(self, user_input: str, max_tokens: int = 150, earlier: Sequence[Any] = ()) -> str:
        """The reply to one message. earlier: what was said before, as messages; the service itself remembers nothing.

        Raises what `Conversation.send_message` raises; a prompt that does not fit the context is refused, never cut.
        """
        config = GenerationConfig(max_tokens=max_tokens, repetition_penalty=1.0)
        conversation, last = conversation_of(self.engine, [*earlier, {"role": "user", "content": user_input}], config)
        with conversation:
            return str(conversation.send_message(last, **sending(config)))

    def process_audio(self, audio: Media, task: str = "transcribe", target_language: str = "en") -> str:
        """What is said in a recording of any length; with the task "translate", also in another language.

        target_language: its name in English, or its ISO 639-1 code.

        Raises ServiceError: another task, or a code that `LANGUAGES` does not have. MediaError: the recording cannot be
        read, or the model does not hear.
        """
        if known("task", task, TASKS) == "transcribe":
            return "".join(transcribe(self.engine, audio))
        return "".join(transcribe_and_translate(self.engine, audio, language_name(target_language)))

    def close(self) -> None:
        """Release the model. Closing twice is fine."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def language_name(language: str) -> str:
    """ "de" -> "German"; a name stays what it is. Raises ServiceError: a code that is not listed."""
    if len(language) > 3:
        return language
    if language.lower() not in LANGUAGES:
        codes = ", ".join(LANGUAGES)
        raise ServiceError(f"unknown language code {language!r}, expected one of {codes}; or write its name in English")
    return LANGUAGES[language.lower()]
