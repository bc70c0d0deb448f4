"""Replies with their figures. The documents' `use_cache` is not asked for: keys and values are always kept."""

import time
from collections.abc import Iterable
from typing import TypedDict

from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.services.chats import Messages, conversation_of, sending
from gemma_edge.runtime.services.request import PLAIN, GenerationConfig


class TimedReply(TypedDict):
    """generation_time: seconds, the prompt's included. tokens_generated: drawn, a stop token included."""

    response: str
    generation_time: float
    tokens_per_second: float
    tokens_generated: int


class TimedBatch(TypedDict):
    """batch_generation_time: seconds for all. average_time_per_item: 0 where there was none."""

    responses: list[str]
    batch_generation_time: float
    average_time_per_item: float


def fast_generate(engine: Engine, messages: Messages, config: GenerationConfig = PLAIN) -> TimedReply:
    """The reply to a list of messages, and how long it took.

    Raises what `conversation_of` and `Conversation.send_message` raise. A prompt that does not fit the context is
    refused and never cut.
    """
    started = time.perf_counter()
    conversation, last = conversation_of(engine, messages, config)
    with conversation:
        reply = conversation.send_message(last, **sending(config))
        tokens = conversation.usage.generated
    seconds = time.perf_counter() - started
    return TimedReply(
        response=str(reply),
        generation_time=seconds,
        tokens_per_second=tokens / seconds,
        tokens_generated=tokens,
    )


def batch_generate(engine: Engine, batch_messages: Iterable[Messages], config: GenerationConfig = PLAIN) -> TimedBatch:
    """The reply to each list of messages, in order. What they begin with in common is prefilled once."""
    started = time.perf_counter()
    responses = [fast_generate(engine, messages, config)["response"] for messages in batch_messages]
    seconds = time.perf_counter() - started
    return TimedBatch(
        responses=responses,
        batch_generation_time=seconds,
        average_time_per_item=seconds / len(responses) if responses else 0.0,
    )
