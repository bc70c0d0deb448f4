"""A service for asyncio: replies, streams, batches and a check of health, with times in the log."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Literal, TypedDict

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.chat.conversation import Conversation
from gemma_edge.runtime.chat.message_json import Json
from gemma_edge.runtime.chat.messages import Message
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.memory.reading import read_memory
from gemma_edge.runtime.services.chats import Messages, conversation_of, sending
from gemma_edge.runtime.services.request import GenerationConfig, MultimodalInput

_log = logging.getLogger(__name__)

SLOW_SECONDS = 5.0
"""From here on a health check says degraded."""


class Health(TypedDict):
    """response_time: seconds for one token. memory_usage: MiB of the process, mapped weights included."""

    status: Literal["healthy", "degraded", "unhealthy"]
    model_loaded: bool
    multimodal_enabled: bool
    response_time: float
    memory_usage: float
    errors: list[str]


class ProductionService:
    """Replies from one engine, to as many tasks at once as ask; each has its own conversation.

    The engine is the caller's, who also closes it. A prompt that does not fit the context is refused and never cut.
    """

    def __init__(self, engine: Engine, config: GenerationConfig = GenerationConfig()) -> None:  # noqa: B008  frozen
        """config: how replies are written where a call does not say."""
        self._engine, self._config = engine, config

    async def generate(
        self,
        messages: Messages = (),
        config: GenerationConfig | None = None,
        multimodal_input: MultimodalInput | None = None,
    ) -> str:
        """The reply to a list of messages, with `multimodal_input` after them where it is given.

        Cancelling the task ends the reply within a token. Raises what `conversation_of` and `Conversation.send_message`
        raise.
        """
        config = config or self._config
        started = time.perf_counter()
        conversation, last = self._conversation(messages, config, multimodal_input)
        with conversation:
            reply = await conversation.asend_message(last, **sending(config))
            _note(conversation, started)
        return str(reply)

    async def stream(
        self,
        messages: Messages = (),
        config: GenerationConfig | None = None,
        multimodal_input: MultimodalInput | None = None,
    ) -> AsyncGenerator[str, None]:
        """The same reply, piece by piece as the model writes it. Leaving the loop early ends it."""
        config = config or self._config
        started = time.perf_counter()
        conversation, last = self._conversation(messages, config, multimodal_input)
        with conversation:
            async with aclosing(conversation.asend_message_async(last, **sending(config))) as pieces:
                async for piece in pieces:
                    yield str(piece)
            _note(conversation, started)

    async def generate_batch(
        self, batch_messages: Iterable[Messages], config: GenerationConfig | None = None
    ) -> list[str]:
        """The reply to each list of messages, in order; all are written at once, a step of each in turn, or together.

        Where one fails, the others are cancelled and its error is raised.
        """
        tasks = [asyncio.create_task(self.generate(messages, config)) for messages in batch_messages]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def health_check(self) -> Health:
        """Whether the model answers: one token between two steps of whatever is being written. Disturbs no reply."""
        started = time.perf_counter()
        errors = []
        try:
            await asyncio.to_thread(self._engine.health)
        except GemmaEdgeError as error:
            errors.append(str(error))
        seconds = time.perf_counter() - started
        status: Literal["healthy", "degraded", "unhealthy"] = "unhealthy" if errors else "healthy"
        if not errors and seconds > SLOW_SECONDS:
            status = "degraded"
            errors.append(f"one token took {seconds:.1f} s, expected at most {SLOW_SECONDS:.0f} s")
        return Health(
            status=status,
            model_loaded=not errors or status == "degraded",
            multimodal_enabled=bool(self._engine.media.kinds),
            response_time=seconds,
            memory_usage=read_memory().total_bytes / 2**20,
            errors=errors,
        )

    def _conversation(
        self, messages: Messages, config: GenerationConfig, multimodal_input: MultimodalInput | None
    ) -> tuple[Conversation, Json | Message]:
        asked = [] if multimodal_input is None else [multimodal_input.message()]
        return conversation_of(self._engine, [*messages, *asked], config)


def _note(conversation: Conversation, started: float) -> None:
    usage = conversation.usage
    _log.info(
        "reply of %d tokens to %d in %.2f s (%s)",
        usage.generated,
        usage.prompt,
        time.perf_counter() - started,
        conversation.finish_reason,
    )
