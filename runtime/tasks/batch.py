"""Many prompts, one after the other, on one engine."""

from collections.abc import Iterable, Iterator
from typing import Any

from gemma_edge.runtime.chat.messages import Message
from gemma_edge.runtime.engine import Engine


def generate_batch(
    engine: Engine, prompts: Iterable[str], *, max_output_tokens: int | None = None, **conversation: Any
) -> Iterator[Message]:
    """The reply to each prompt in a conversation of its own, in order, as soon as it is there.

    conversation: what `Engine.create_conversation` takes. What all prompts begin with, a system message for instance,
    is prefilled once: the KV cache keeps it from one conversation to the next.
    """
    for prompt in prompts:
        with engine.create_conversation(**conversation) as one:
            yield one.send_message(prompt, max_output_tokens=max_output_tokens)
