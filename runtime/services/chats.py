"""From a list of messages, as the documents' services take them, to a conversation that answers the last one."""

from collections.abc import Mapping, Sequence
from typing import Any

from gemma_edge.runtime.chat.conversation import Conversation
from gemma_edge.runtime.chat.message_json import Json
from gemma_edge.runtime.chat.messages import Message
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.services.errors import ServiceError
from gemma_edge.runtime.services.request import GenerationConfig

Messages = Sequence[Json | Message]


def conversation_of(
    engine: Engine, messages: Messages, config: GenerationConfig, **options: Any
) -> tuple[Conversation, Json | Message]:
    """A conversation in which all but the last message were said, and the last, to be sent with `sending(config)`.

    Its prompt is that of the whole list. options: what `Engine.create_conversation` takes besides.

    Raises ServiceError: no messages, or nothing to answer at their end. MessageError: one that cannot be read.
    """
    if not messages:
        raise ServiceError("there are no messages, expected at least one; send what the user asks")
    *earlier, last = messages
    role = last.get("role") if isinstance(last, Mapping) else None
    if role not in ("user", "tool"):
        raise ServiceError(f"the last message has the role {role!r}, expected user; end with what is to be answered")
    return engine.create_conversation(messages=earlier, sampler_config=config.sampler, **options), last


def sending(config: GenerationConfig) -> dict[str, Any]:
    """What `send_message` and its like take."""
    return {"max_output_tokens": config.max_tokens, "repetition_penalty_config": config.penalty}
