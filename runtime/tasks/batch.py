"""Many prompts on one engine: one after the other, or several at once where the bundle can."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from gemma_edge.runtime.chat.conversation import Conversation
from gemma_edge.runtime.chat.messages import Message
from gemma_edge.runtime.engine import Engine


def generate_batch(
    engine: Engine, prompts: Iterable[str], *, max_output_tokens: int | None = None, **conversation: Any
) -> Iterator[Message]:
    """The reply to each prompt in a conversation of its own, in order, as soon as it is there.

    conversation: what `Engine.create_conversation` takes. What all prompts begin with, a system message for instance,
    is prefilled once: the KV cache keeps it from one conversation to the next.

    Of a bundle that was converted with --batch, as many are written at once as that says and there are slots for; some
    prompts are then read ahead, and tools run in threads of their own. The replies are the same. Where one fails, its
    error is raised in its place, and those behind it are cancelled.
    """
    at_once = min(max(engine.batch_rows, default=1), engine.slots)
    replies = _Replies(engine, max_output_tokens, conversation)
    if at_once == 1:
        yield from map(replies.write, prompts)
        return
    ahead: deque[Future[Message]] = deque()
    waiting = iter(prompts)
    with ThreadPoolExecutor(at_once) as pool:
        try:
            for prompt in waiting:  # the first one alone: the others find there what all begin with
                yield pool.submit(replies.write, prompt).result()
                break
            for prompt in waiting:
                ahead.append(pool.submit(replies.write, prompt))
                if len(ahead) == 2 * at_once:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for reply in ahead:
                reply.cancel()
            while wait(ahead, timeout=0.05).not_done:  # again: one may not have begun to write
                replies.cancel()


class _Replies:
    """Writes each, in whatever thread it is called."""

    def __init__(self, engine: Engine, max_output_tokens: int | None, conversation: dict[str, Any]) -> None:
        self._engine = engine
        self._max_output_tokens = max_output_tokens
        self._options = conversation
        self._live: set[Conversation] = set()

    def write(self, prompt: str) -> Message:
        """The reply to one."""
        with self._engine.create_conversation(**self._options) as one:
            self._live.add(one)
            try:
                return one.send_message(prompt, max_output_tokens=self._max_output_tokens)
            finally:
                self._live.discard(one)

    def cancel(self) -> None:
        """End those that are being written."""
        for one in list(self._live):
            one.cancel_process()
