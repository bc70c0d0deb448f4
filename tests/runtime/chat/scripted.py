"""A model that says what a test wants: the tiny ones have not learnt to call tools."""

from collections.abc import Sequence
from typing import Any

from gemma_edge.runtime.chat.conversation import Conversation
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.executors.base import Logits
from gemma_edge.runtime.text.sampler import Sampler, SamplerConfig


class Script(Sampler):
    """Draws the tokens of `replies`, each with its stop token, whatever the logits say."""

    def __init__(self, engine: Engine, replies: Sequence[str]) -> None:
        super().__init__(SamplerConfig())
        end = engine.eos_token_ids[-1][0]
        self._tokens = iter([token for reply in replies for token in (*engine.tokenize(reply), end)])

    def pick(self, logits: Logits) -> int:  # noqa: ARG002
        return next(self._tokens)


def scripted(engine: Engine, replies: Sequence[str], **options: Any) -> Conversation:
    """A conversation whose prompts and steps are real, and whose replies are these."""
    conversation = engine.create_conversation(**options)
    conversation._sampler = Script(engine, replies)
    return conversation
